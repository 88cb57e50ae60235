"""The event loop: arrivals, engine events, cache transfers, scaling and failures in order of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import numpy as np

from hardware.errors import InfeasibleError
from planner.simulate.engine import Engine
from planner.simulate.lifecycle import Lifecycle
from planner.simulate.requests import RequestTable
from planner.simulate.routers import Target, make_router
from planner.simulate.settings import Role
from planner.simulate.transfers import CacheLinks

if TYPE_CHECKING:
    from costmodels.traces import Trace
    from planner.simulate.fleet import EngineSpec, Fleet, Pool

__all__ = ["GiveUp", "Raw", "Simulation", "simulate", "simulate_unless"]

_NEVER = float("inf")
_ASK_EVERY = 256


GiveUp = Callable[[RequestTable, int, float], bool]


@dataclass(slots=True)
class Raw:
    """What a run leaves behind: request columns, event logs, and when each engine was paid for."""

    trace: Trace
    fleet: Fleet
    table: RequestTable
    engines: list[Engine]
    pool_of: list[int]
    paid_s: list[list[tuple[float, float]]]
    """Per engine, the spans of time in which it was on (or starting, or draining)."""
    num_transfers: int
    transfer_s: float
    """Total time that caches spent queued for and on links."""
    end_s: float
    logged: bool = True
    """Whether the engines kept their event logs; without them the gaps between tokens are not known."""


def simulate(fleet: Fleet, trace: Trace, *, seed: int = 0) -> Raw:
    """Return the raw outcome of replaying `trace` on `fleet` until every request is finished.

    Raises
    ------
    InfeasibleError
        if some request fits in no engine that may take it.
    """
    raw = Simulation(fleet, trace, seed).run()
    assert raw is not None
    return raw


def simulate_unless(
    fleet: Fleet, trace: Trace, give_up: GiveUp, *, seed: int = 0, logged: bool = True
) -> Raw | None:
    """Return the raw outcome as `simulate` does, or None once `give_up` says so.

    Parameters
    ----------
    give_up : asked after every few hundred arrivals with (table, requests arrived, time).
    logged : keep the event logs of the engines.
    """
    return Simulation(fleet, trace, seed, logged=logged).run(give_up)


class Simulation:
    """One replay: the state of the fleet and the heap of what happens next."""

    def __init__(self, fleet: Fleet, trace: Trace, seed: int, *, logged: bool = True) -> None:
        self.fleet = fleet
        self.logged = logged
        self.trace = trace
        speculation = next(
            (p.engine.settings.speculation for p in fleet.pools if p.engine.settings.speculation), None
        )
        self.table = RequestTable(trace, speculation=speculation, seed=seed)
        # One draw per request, whatever the fleet: common random numbers across fleets.
        self.draws: list[float] = np.random.default_rng(seed).random(len(trace)).tolist()
        self.heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self.order = 0
        self.engines: list[Engine] = []
        self.specs: list[EngineSpec] = []
        self.pool_of: list[int] = []
        self.targets: list[list[Target]] = []
        self.up: list[bool] = []
        self.draining: list[bool] = []
        self.on_since: list[float] = []
        self.paid_s: list[list[tuple[float, float]]] = []
        self.now_s = 0.0
        self.last_finish_s = 0.0
        self.unrouted: deque[int] = deque()
        self.num_left = len(trace)
        self.split = any(p.engine.role is Role.PREFILL for p in fleet.pools)
        self.units: list[list[list[int]]] = [[] for _ in fleet.pools]
        for i, pool in enumerate(fleet.pools):
            self._build_pool(i, pool)
        self.links = CacheLinks(self, self.specs, fleet.shared_link)
        self.route = make_router(fleet.router, self.table, fleet)
        self.route_decode = make_router(fleet.decode_router, self.table, fleet)
        self.entry: list[Target] = []
        self.decode_entry: list[Target] = []
        self.refresh_targets()
        self.lifecycle = Lifecycle(self, seed)

    def run(self, give_up: GiveUp | None = None) -> Raw | None:
        """Return the outcome after the last request has finished, or None if `give_up` ended it."""
        self._check_fits()
        arrival_s = self.table.arrival_s
        count = len(arrival_s)
        heap = self.heap
        request = 0
        next_s = arrival_s[0]
        while request < count or self.num_left:
            if heap and heap[0][0] < next_s:
                at_s, _, action, what = heappop(heap)
                self.now_s = at_s
                action(what)
            elif request < count:
                self.now_s = next_s
                self.arrive(request)
                request += 1
                if give_up is not None and request % _ASK_EVERY == 0 and give_up(self.table, request, next_s):
                    return None
                next_s = arrival_s[request] if request < count else _NEVER
            else:
                message = f"{self.num_left} requests can never finish: no engine comes back to take them"
                raise InfeasibleError(message)
        end_s = max(self.last_finish_s, arrival_s[-1])
        for i, since in enumerate(self.on_since):
            if since < _NEVER:
                self.paid_s[i].append((since, max(end_s, since)))
        return Raw(
            trace=self.trace,
            fleet=self.fleet,
            table=self.table,
            engines=self.engines,
            pool_of=self.pool_of,
            paid_s=self.paid_s,
            num_transfers=self.links.num_transfers,
            transfer_s=self.links.transfer_s,
            end_s=end_s,
            logged=self.logged,
        )

    def _build_pool(self, index: int, pool: Pool) -> None:
        """Make every engine that the pool may ever run; the lanes of a pipeline are engines of one unit."""
        spec = pool.engine
        lanes = spec.num_lanes
        # The lanes of a pipeline are what runs ahead there: each forms its iterations in turn.
        settings = replace(
            spec.settings,
            max_seqs=-(-spec.settings.max_seqs // lanes),
            run_ahead=spec.settings.run_ahead and lanes == 1,
        )
        swap = spec.kv_bytes_per_token / spec.host_bytes_per_s if spec.host_bytes_per_s else 0.0
        for number in range(pool.num_engines):
            on = number < pool.count
            gate = [0.0] if lanes > 1 else None
            self.units[index].append(list(range(len(self.engines), len(self.engines) + lanes)))
            for _ in range(lanes):
                engine = Engine(
                    len(self.engines),
                    settings=settings,
                    timer=spec.timer,
                    table=self.table,
                    kv_tokens=spec.kv_tokens // lanes,
                    num_ranks=spec.num_ranks,
                    role=spec.role,
                    swap_s_per_token=swap,
                    gate=gate,
                    num_stages=lanes,
                    logged=self.logged,
                )
                ranks = enumerate(engine.ranks)
                self.targets.append([Target(engine.index, i, rank, index) for i, rank in ranks])
                self.engines.append(engine)
                self.specs.append(spec)
                self.pool_of.append(index)
                self.up.append(on)
                self.draining.append(False)
                self.on_since.append(self.table.arrival_s[0] if on else _NEVER)
                self.paid_s.append([])

    def _check_fits(self) -> None:
        table = self.table
        for role in (Role.PREFILL, Role.DECODE) if self.split else (Role.BOTH,):
            ranks = [e.ranks[0] for e, s in zip(self.engines, self.specs, strict=True) if s.role is role]
            best = max(ranks, key=lambda rank: rank.pool.num_blocks)
            bad = [r for r in range(len(table)) if not best.pool.fits(r)]
            if bad:
                need = max(table.prompt_tokens[r] + table.output_tokens[r] for r in bad)
                kind = "" if role is Role.BOTH else f"{role.value} "
                message = (
                    f"{len(bad)} requests fit in no {kind}engine: up to {need} tokens are needed, "
                    f"the largest cache holds {best.pool.num_blocks * best.pool.block_tokens}"
                )
                raise InfeasibleError(message, ("kv_tokens",))

    def at(self, at_s: float, action: Callable[[Any], None], what: object = None) -> None:
        """Put an action on the heap."""
        self.order += 1
        heappush(self.heap, (at_s, self.order, action, what))

    def refresh_targets(self) -> None:
        """List again which ranks take new requests, after an engine has come or gone."""
        able = [
            target
            for i, targets in enumerate(self.targets)
            if self.up[i] and not self.draining[i]
            for target in targets
        ]
        self.entry = [t for t in able if self.specs[t.engine].role is not Role.DECODE]
        self.decode_entry = [t for t in able if self.specs[t.engine].role is Role.DECODE]

    def arrive(self, request: int) -> None:
        """Route a request and let its engine take it as soon as its running event can end."""
        targets = self.entry
        if len(targets) > 1:
            targets = self._able(request, targets)
        if not targets:
            self.unrouted.append(request)
            return
        target = targets[0] if len(targets) == 1 else self.route(request, targets, self.draws[request])
        target.routed += 1
        index = target.engine
        engine = self.engines[index]
        self.table.engine[request] = index
        self.table.queued_s[request] = self.now_s
        if not engine.busy:
            # Not at once: others that arrive at this very time may join the same iteration.
            target.rank.enqueue(request)
            self.at(self.now_s, self.wake, index)
            return
        if engine.interrupt(self.now_s, request, target.rank_index):
            self.at(engine.end_s, self._engine_event, index)
        target.rank.enqueue(request)

    def _able(self, request: int, targets: list[Target]) -> list[Target]:
        """Return the targets whose cache can hold the request; only mixed fleets need to look."""
        if len(self.fleet.pools) == 1:
            return targets
        return [t for t in targets if t.rank.pool.fits(request)]

    def _engine_event(self, index: int) -> None:
        engine = self.engines[index]
        now_s = self.now_s
        if not engine.busy or engine.end_s != now_s:
            return  # The run was cut short, or lost; its own event stands elsewhere in the heap.
        done, prefilled = engine.complete()
        if done:
            self.num_left -= len(done)
            self.last_finish_s = now_s
        for request in prefilled:
            self._hand_over(request, index)
        self._after_change(index)

    def _after_change(self, index: int) -> None:
        """Use memory that may have become free: start transfers to here, then the next iteration."""
        engine = self.engines[index]
        if self.split:
            for target in self.targets[index]:
                self._start_transfers(target)
        if engine.plan(self.now_s):
            self.at(engine.end_s, self._engine_event, index)
        elif self.draining[index] and engine.outstanding == 0:
            self.lifecycle.turn_off_if_empty(index)

    def wake(self, index: int) -> None:
        """Let an idle engine look for work."""
        if not self.engines[index].busy:
            self._after_change(index)

    def _hand_over(self, request: int, index: int) -> None:
        """Choose the decode engine of a prefilled request; its cache stays until it can be sent."""
        self.table.prefill_engine[request] = index
        targets = self._able(request, self.decode_entry)
        if not targets:
            self.unrouted.append(request)
            return
        target = self.route_decode(request, targets, self.draws[request])
        target.routed += 1
        self.table.engine[request] = target.engine
        target.rank.enqueue_prefilled(request)
        engine = self.engines[target.engine]
        if not engine.busy:
            self._start_transfers(target)
        elif engine.interrupt(self.now_s, request, target.rank_index):
            # Memory is given out between iterations only: the running ones count on what is free.
            self.at(engine.end_s, self._engine_event, target.engine)

    def _start_transfers(self, target: Target) -> None:
        """Send every cache for which the target has memory, in the order in which prompts were done."""
        while (request := target.rank.reserve_pending()) is not None:
            self.links.send(
                self.table.prefill_engine[request],
                target.engine,
                self.table.target_tokens[request],
                self._cache_arrived,
                (request, self.table.restarts[request], target),
            )

    def _cache_arrived(self, what: tuple[int, int, Target]) -> None:
        request, restarts, target = what
        if self.table.restarts[request] != restarts:
            return  # One of the two engines failed meanwhile; the request runs elsewhere.
        source = self.table.prefill_engine[request]
        self._prefill_rank(request, source).release_handed_over(request)
        target.rank.receive(request)
        self.wake(source)
        self.wake(target.engine)

    def _prefill_rank(self, request: int, index: int) -> Any:
        return next(t.rank for t in self.targets[index] if request in t.rank.held_requests())

    def route_held(self) -> None:
        """Route requests that found no engine up."""
        held, self.unrouted = self.unrouted, deque()
        for request in held:
            if self.table.prefill_engine[request] >= 0 and self.split:
                self._hand_over(request, self.table.prefill_engine[request])
            else:
                self.arrive(request)
