"""Replays of each model's part of a planned fleet, remembered while one request is planned."""

from dataclasses import replace

import numpy as np

from planner.serving.check import SimulatedFleet, simulated_check
from planner.serving.mix import Fleet, Form, Slot, left_after_losses
from planner.serving.plan import SimulatedCheck
from planner.serving.request import ServeRequest
from planner.workload import Workload
from solvers.gpu_mix import MixSolution

__all__ = ["Replays"]

_DIGITS = 3
"""Of the router's shares and of the rate: mixes that agree so far are the same to a replay."""


class Replays:
    """What replays have shown, by model, form, counts, shares and rate."""

    def __init__(self, request: ServeRequest) -> None:
        self._request = request
        self._fleets: dict[tuple[str, Form], SimulatedFleet] = {}
        self._seen: dict[tuple[str, Form, bytes, bytes, float], SimulatedCheck] = {}

    def check(self, slot: Slot, fleet: Fleet, solution: MixSolution, scale: float) -> SimulatedCheck:
        """Return what a replay of one model's traffic shows on what losses leave of its part of the fleet."""
        demand = slot.demand
        columns = slice(slot.buckets[0].start, slot.buckets[-1].stop)
        count = left_after_losses(self._request, solution)[slot.items]
        share = solution.share[slot.items][:, columns]
        key = (
            demand.name,
            slot.form,
            count.tobytes(),
            (np.round(share, _DIGITS) + 0.0).tobytes(),
            round(scale, _DIGITS),
        )
        if key not in self._seen:
            place = (demand.name, slot.form)
            if place not in self._fleets:
                self._fleets[place] = SimulatedFleet(
                    request=demand.request,
                    model=demand.model,
                    engine=demand.engine,
                    items=fleet.items[slot.items],
                    buckets=demand.buckets,
                )
            part = replace(solution, count=count, share=share, away=None, bought=None)
            self._seen[key] = simulated_check(self._fleets[place], part, _scaled(demand.workload, scale))
        return self._seen[key]


def _scaled(workload: Workload, scale: float) -> Workload:
    """Return the workload at another rate."""
    if scale == 1.0:
        return workload
    rate = workload.traffic.rate_per_s * scale
    trace = None if workload.trace is None else workload.trace.scaled(rate)
    return Workload(traffic=replace(workload.traffic, rate_per_s=rate), trace=trace)
