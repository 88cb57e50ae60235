"""The pipeline of a training plan as a graph of operations with a clock curve each."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from costmodels.power.response import ClockResponse
from costmodels.training.pipeline_orders import Kind, Schedule, rank_orders
from solvers.time_energy import ClockCurve, TimeEnergyProblem

__all__ = ["clock_curve", "operations", "pipeline_problem", "static_clocks"]

Floats = npt.NDArray[np.float64]


def clock_curve(
    time_s: float,
    natural_w: float,
    clocks_frac: Floats,
    response: ClockResponse,
    *,
    blocked_w: float,
    devices: int,
) -> ClockCurve:
    """Return time and energy above the blocked draw at each clock, for all devices that run the operation."""
    times = time_s * response.time_frac(clocks_frac)
    watts = np.maximum(natural_w * response.power_frac(clocks_frac), blocked_w)
    return ClockCurve(time_s=times, energy_j=(watts - blocked_w) * times * devices)


def operations(num_stages: int, num_microbatches: int, schedule: Schedule) -> list[tuple[int, Kind, int]]:
    """Return stage, kind and micro-batch of every operation, stage by stage in the order it runs."""
    orders = rank_orders(schedule, num_stages, num_microbatches, 1)
    return [(stage, kind, batch) for stage in range(num_stages) for kind, _, batch in orders[stage]]


def pipeline_problem(
    stages: Sequence[tuple[ClockCurve, ClockCurve]],
    num_microbatches: int,
    *,
    blocked_w: float,
    schedule: Schedule = Schedule.ONE_F_ONE_B,
) -> TimeEnergyProblem:
    """Return the graph of one flush; `stages` holds the curves of forward and backward of each stage.

    Parameters
    ----------
    blocked_w : draw of all devices of one stage while they wait. [W]
    """
    num_stages = len(stages)
    done = operations(num_stages, num_microbatches, schedule)
    index = {op: i for i, op in enumerate(done)}
    edges = [(i, i + 1) for i in range(len(done) - 1) if done[i][0] == done[i + 1][0]]
    for (stage, kind, batch), i in index.items():
        if kind is Kind.FORWARD and stage:
            edges.append((index[stage - 1, Kind.FORWARD, batch], i))
        elif kind is Kind.BACKWARD:
            last = stage == num_stages - 1
            need = (stage, Kind.FORWARD, batch) if last else (stage + 1, Kind.BACKWARD, batch)
            edges.append((index[need], i))
    pairs = np.array(sorted(set(edges)), dtype=np.int64).reshape(-1, 2)
    return TimeEnergyProblem(
        before=pairs[:, 0],
        after=pairs[:, 1],
        curve=np.array([2 * stage + int(kind) for stage, kind, _ in done]),
        curves=tuple(curve for both in stages for curve in both),
        blocked_w=blocked_w * num_stages,
    )


def static_clocks(problem: TimeEnergyProblem) -> TimeEnergyProblem:
    """Return the problem in which all operations of a stage and kind share one clock."""
    return replace(problem, group=problem.curve)
