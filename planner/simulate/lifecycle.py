"""Engines that come and go: scaling by schedule or by load, cold starts, failures and restarts.

A unit is what starts and stops as one: an engine, or the lanes of one pipeline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hardware.errors import SpecError

if TYPE_CHECKING:
    from planner.simulate.engine import Engine
    from planner.simulate.fleet import Fleet
    from planner.simulate.requests import RequestTable
    from planner.simulate.routers import Target

__all__ = ["Lifecycle", "RunningFleet"]

_NEVER = float("inf")


class RunningFleet(Protocol):
    """The state of a fleet in a running simulation, as far as starting and stopping engines concerns it."""

    fleet: Fleet
    table: RequestTable
    engines: list[Engine]
    targets: list[list[Target]]
    up: list[bool]
    draining: list[bool]
    on_since: list[float]
    paid_s: list[list[tuple[float, float]]]
    units: list[list[list[int]]]
    unrouted: deque[int]
    num_left: int
    now_s: float
    split: bool

    def at(self, at_s: float, action: Callable[[Any], None], what: object = None) -> None:
        """Do `action` with `what` at a time."""
        ...

    def arrive(self, request: int) -> None:
        """Route a request."""
        ...

    def route_held(self) -> None:
        """Route requests that found no engine up."""
        ...

    def refresh_targets(self) -> None:
        """List again which engines take requests."""
        ...

    def wake(self, index: int) -> None:
        """Let an idle engine look for work."""
        ...


class Lifecycle:
    """Turns units on and off in a running simulation."""

    def __init__(self, simulation: RunningFleet, seed: int) -> None:
        self._sim = simulation
        self._start_s = simulation.table.arrival_s[0]
        self._plan_scaling()
        self._plan_failures(seed)

    def turn_off_if_empty(self, index: int) -> None:
        """Stop paying for the unit of a draining engine once all of it is empty."""
        sim = self._sim
        unit = next(u for units in sim.units for u in units if index in u)
        if any(sim.engines[i].outstanding for i in unit):
            return
        for i in unit:
            sim.paid_s[i].append((sim.on_since[i], sim.now_s))
            sim.on_since[i] = _NEVER
            sim.up[i] = sim.draining[i] = False

    def _plan_scaling(self) -> None:
        for i, pool in enumerate(self._sim.fleet.pools):
            for step in pool.schedule:
                self._sim.at(self._start_s + step.at_s, self._scale_to, (i, step.count))
            if pool.reactive:
                self._sim.at(self._start_s + pool.reactive.interval_s, self._react, i)

    def _units_on(self, pool_index: int) -> list[list[int]]:
        sim = self._sim
        return [u for u in sim.units[pool_index] if sim.on_since[u[0]] < _NEVER and not sim.draining[u[0]]]

    def _scale_to(self, what: tuple[int, int]) -> None:
        pool_index, wanted = what
        sim = self._sim
        pool = sim.fleet.pools[pool_index]
        wanted = min(max(wanted, pool.min_count), pool.num_engines)
        on = self._units_on(pool_index)
        # An engine that still drains is taken back before a cold one is started.
        spare = [u for u in sim.units[pool_index] if sim.draining[u[0]]]
        spare += [u for u in sim.units[pool_index] if sim.on_since[u[0]] == _NEVER]
        for unit in spare[: max(wanted - len(on), 0)]:
            cold = not sim.draining[unit[0]]
            for i in unit:
                sim.draining[i] = False
                if cold:
                    sim.on_since[i] = sim.now_s
            if cold:
                sim.at(sim.now_s + pool.start_up_s, self._come_up, unit)
        for unit in on[wanted:]:
            for i in unit:
                sim.draining[i] = True
            self.turn_off_if_empty(unit[0])
        sim.refresh_targets()
        sim.route_held()

    def _react(self, pool_index: int) -> None:
        sim = self._sim
        pool = sim.fleet.pools[pool_index]
        rule = pool.reactive
        if rule is None or not sim.num_left:
            return
        on = self._units_on(pool_index)
        outstanding = sum(sim.engines[i].outstanding for u in on for i in u) + len(sim.unrouted)
        load = outstanding / max(len(on), 1)
        if load > rule.add_above or not on:
            self._scale_to((pool_index, len(on) + rule.step))
        elif load < rule.remove_below:
            self._scale_to((pool_index, len(on) - rule.step))
        sim.at(sim.now_s + rule.interval_s, self._react, pool_index)

    def _come_up(self, unit: list[int]) -> None:
        sim = self._sim
        if sim.on_since[unit[0]] == _NEVER:
            return
        for i in unit:
            sim.up[i] = True
        sim.refresh_targets()
        sim.route_held()

    def _plan_failures(self, seed: int) -> None:
        fleet = self._sim.fleet
        names = [pool.name for pool in fleet.pools]
        for number, failure in enumerate(fleet.failures):
            known = failure.pool in names and failure.engine < len(self._sim.units[names.index(failure.pool)])
            if not known:
                accepted = ", ".join(f"{p.name} 0..{p.num_engines - 1}" for p in fleet.pools)
                problem = (
                    f"failures.{number}: no engine {failure.engine} of pool {failure.pool!r}; {accepted}"
                )
                raise SpecError("fleet", [problem])
            unit = self._sim.units[names.index(failure.pool)][failure.engine]
            self._sim.at(self._start_s + failure.at_s, self._fail, (unit, failure.down_s))
        mean_s = fleet.mean_time_between_failures_s
        if not mean_s:
            return
        span_s = self._sim.table.arrival_s[-1] - self._start_s
        for number, unit in enumerate(u for units in self._sim.units for u in units):
            rng = np.random.default_rng((seed, number))
            at_s = float(rng.exponential(mean_s))
            while at_s < span_s:
                self._sim.at(self._start_s + at_s, self._fail, (unit, fleet.repair_s))
                at_s += fleet.repair_s + float(rng.exponential(mean_s))

    def _fail(self, what: tuple[list[int], float]) -> None:
        unit, down_s = what
        sim = self._sim
        if not sim.up[unit[0]]:
            return
        lost = [request for index in unit for request in self._lost_with(index)]
        for index in unit:
            sim.up[index] = False
        sim.refresh_targets()
        for request in lost:
            sim.table.restart(request)
            sim.table.prefill_engine[request] = -1
        sim.at(sim.now_s + down_s, self._come_up, unit)
        for request in lost:
            sim.arrive(request)
        for other in range(len(sim.engines)):
            sim.wake(other)

    def _lost_with(self, index: int) -> list[int]:
        """Clear the engine; return its requests and those whose cache it was sending or receiving."""
        sim = self._sim
        table = sim.table
        moving = [r for t in sim.targets[index] for r in (*t.rank.held_requests(), *t.rank.pending)]
        lost = dict.fromkeys(sim.engines[index].fail())
        lost.update(dict.fromkeys(moving))
        if sim.split:
            for request in lost:
                self._forget_elsewhere(request, index)
        return [r for r in lost if table.finish_s[r] == _NEVER]

    def _forget_elsewhere(self, request: int, failed: int) -> None:
        """Free what a lost request holds on the engine at the other end of its transfer."""
        sim = self._sim
        for index in (sim.table.prefill_engine[request], sim.table.engine[request]):
            if index >= 0 and index != failed:
                for target in sim.targets[index]:
                    target.rank.forget(request)
