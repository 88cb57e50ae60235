"""Caches share links without holding up what goes elsewhere."""

from heapq import heappop, heappush
from itertools import count
from typing import Any

import pytest

from planner.simulate.fleet import EngineSpec, Link
from planner.simulate.timing import AffineTimer
from planner.simulate.transfers import CacheLinks

A_SECOND = 1000
"""Tokens that take a second on an engine's link."""
NO_TIME = (0.0, 0.0, 0.0)


class Clock:
    """Does what is asked for in order of time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Any, Any]] = []
        self._order = count()

    def at(self, at_s: float, action: Any, what: object = None) -> None:
        heappush(self._heap, (at_s, next(self._order), action, what))

    def run(self) -> None:
        while self._heap:
            self.now_s, _, action, what = heappop(self._heap)
            action(what)


def arrivals(sent: list[tuple[int, int]], shared: Link | None = None, latency_s: float = 0.0) -> list[float]:
    """Return when transfers of one second each, all asked for at once, have arrived."""
    spec = EngineSpec(
        timer=AffineTimer(prefill=NO_TIME, decode_small=NO_TIME, decode_large=NO_TIME, large_batch=1),
        kv_tokens=100, kv_bytes_per_token=1e6, link_bytes_per_s=1e6 * A_SECOND, link_latency_s=latency_s,
    )  # fmt: skip
    clock = Clock()
    links = CacheLinks(clock, [spec] * 6, shared)
    there: dict[object, float] = {}
    for number, (source, sink) in enumerate(sent):
        links.send(source, sink, A_SECOND, lambda what: there.__setitem__(what, clock.now_s), number)
    clock.run()
    assert links.num_transfers == len(sent)
    assert links.transfer_s == pytest.approx(sum(there.values()))
    return [there[number] for number in range(len(sent))]


def test_a_transfer_alone_takes_its_bytes_over_the_slowest_link_and_the_latency() -> None:
    assert arrivals([(0, 5)], latency_s=0.25) == [1.25]
    assert arrivals([(0, 5)], Link(bytes_per_s=0.5e9, latency_s=0.5)) == [2.5]


def test_transfers_to_one_engine_take_turns() -> None:
    assert arrivals([(0, 5), (1, 5), (2, 5)]) == [1.0, 2.0, 3.0]
    assert arrivals([(0, 3), (0, 4), (0, 5)]) == [1.0, 2.0, 3.0]


def test_what_waits_for_a_busy_receiver_does_not_hold_up_its_sender() -> None:
    # The second waits for engine 5; the third leaves engine 1 as soon as the second has left it.
    assert arrivals([(0, 5), (1, 5), (1, 4)]) == [1.0, 2.0, 2.0]


def test_every_link_works_all_the_time_when_all_send_to_all() -> None:
    # Three senders and three receivers, two transfers for each pair: six seconds of work for every link.
    sent = [(source, 3 + (source + turn) % 3) for turn in range(6) for source in range(3)]
    assert max(arrivals(sent)) == pytest.approx(6.0)
    crossed = [(source, sink) for sink in (3, 4, 5) for source in range(3) for _ in range(2)]
    assert max(arrivals(crossed)) <= 10.0


def test_a_shared_path_bounds_all_together() -> None:
    assert max(arrivals([(0, 3), (1, 4), (2, 5)], Link(bytes_per_s=1e9))) == pytest.approx(3.0)
