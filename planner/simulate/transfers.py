"""Caches on their way from the engines that read prompts to those that decode.

A transfer passes the sender's link, the path that all share where there is one, and the receiver's link. On
each it waits for those that asked before it, and passes on to the next as soon as it starts: no link stands
idle for a transfer that waits at another, as networks share theirs among the flows that can use them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from planner.simulate.fleet import EngineSpec, Link

__all__ = ["CacheLinks", "Clock"]


class Clock(Protocol):
    """The time of a running simulation."""

    now_s: float

    def at(self, at_s: float, action: Callable[[Any], None], what: object = None) -> None:
        """Do `action` with `what` at a time."""
        ...


@dataclass(slots=True)
class _Queue:
    """A link that takes one transfer after the other."""

    bytes_per_s: float
    free_s: float = 0.0


@dataclass(slots=True)
class _Transfer:
    num_bytes: float
    latency_s: float
    queues: list[_Queue]
    """Links still to be started on, the next one last."""
    asked_s: float
    end_s: float
    """When the last byte has left the links started on so far."""
    arrived: Callable[[Any], None]
    what: object


class CacheLinks:
    """The links of all engines, and what has been sent over them."""

    def __init__(self, clock: Clock, specs: Sequence[EngineSpec], shared: Link | None) -> None:
        self._clock = clock
        self._specs = specs
        self._engines = [_Queue(spec.link_bytes_per_s) if spec.link_bytes_per_s else None for spec in specs]
        self._shared = None if shared is None else _Queue(shared.bytes_per_s)
        self._shared_latency_s = 0.0 if shared is None else shared.latency_s
        self.num_transfers = 0
        self.transfer_s = 0.0
        """Total time that caches spent queued for and on links."""

    def send(
        self, source: int, sink: int, num_tokens: int, arrived: Callable[[Any], None], what: object
    ) -> None:
        """Send the cache of some tokens; `arrived` is called with `what` once it is there."""
        sender, receiver = self._specs[source], self._specs[sink]
        way = (self._engines[sink], self._shared, self._engines[source])
        self.num_transfers += 1
        self._pass_on(
            _Transfer(
                num_bytes=num_tokens * sender.kv_bytes_per_token,
                latency_s=max(sender.link_latency_s, receiver.link_latency_s) + self._shared_latency_s,
                queues=[queue for queue in way if queue is not None],
                asked_s=self._clock.now_s,
                end_s=self._clock.now_s,
                arrived=arrived,
                what=what,
            )
        )

    def _pass_on(self, transfer: _Transfer) -> None:
        """Take the turn on the links that are free now, up to the first that is not."""
        clock = self._clock
        while transfer.queues:
            queue = transfer.queues.pop()
            start_s = max(clock.now_s, queue.free_s)
            queue.free_s = start_s + transfer.num_bytes / queue.bytes_per_s
            transfer.end_s = max(transfer.end_s, queue.free_s)
            if start_s > clock.now_s:
                clock.at(start_s, self._pass_on, transfer)
                return
        there_s = transfer.end_s + transfer.latency_s
        self.transfer_s += there_s - transfer.asked_s
        clock.at(there_s, transfer.arrived, transfer.what)
