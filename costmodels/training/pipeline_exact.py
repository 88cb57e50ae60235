r"""Exact length of a pipeline flush with unequal stages, as a recurrence over its tasks.

A task starts when its rank has finished the task before it and the tasks it needs have ended and arrived:

.. math:: e_j = \max(e_{prev(j)}, \max_{i \in need(j)} e_i + c_{ij}) + d_j

A forward needs the forward of the virtual stage before it, a backward the backward of the stage after it (the
last stage: its own forward), a weight gradient its own backward. With `overlap_p2p` a send only delays the
receiver; without, the sender also waits for it. The order of tasks is fixed per (schedule, pp, micro-batches,
vpp), so one pass over it serves many configurations at once as columns.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from costmodels.training.pipeline_orders import Kind, Schedule, rank_orders
from hardware.errors import OutOfDomainError

__all__ = ["StageTimes", "exact_step_s", "exact_timeline"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageTimes:
    """Seconds of each virtual stage and hop for one micro-batch; shape (configurations, virtual stages)."""

    forward_s: Floats
    backward_s: Floats
    """Whole backward; only the input gradient where `weight_s` is given."""
    weight_s: Floats | None = None
    """Weight gradient, for schedules that split it off."""
    forward_hop_s: Floats | None = None
    """Send from virtual stage k to k + 1; shape (configurations, virtual stages - 1)."""
    backward_hop_s: Floats | None = None
    """Send from virtual stage k + 1 back to k."""


@dataclass(frozen=True, slots=True, eq=False)
class _Program:
    """Tasks in an order in which every need comes first; -1 means none."""

    kind: tuple[int, ...]
    stage: tuple[int, ...]
    rank: tuple[int, ...]
    micro_batch: tuple[int, ...]
    before: tuple[int, ...]
    """Index of the task that the same rank runs before."""
    need: tuple[int, ...]
    """Index of the task whose result it needs."""


def _need(kind: Kind, stage: int, micro_batch: int, last: int) -> tuple[Kind, int, int] | None:
    if kind is Kind.WEIGHT:
        return Kind.BACKWARD, stage, micro_batch
    if kind is Kind.FORWARD:
        return (Kind.FORWARD, stage - 1, micro_batch) if stage else None
    return (Kind.BACKWARD, stage + 1, micro_batch) if stage < last else (Kind.FORWARD, stage, micro_batch)


@lru_cache(maxsize=32)
def _program(schedule: Schedule, pp: int, num_micro_batches: int, vpp: int) -> _Program:
    """Return the tasks of all ranks in one runnable order.

    Raises
    ------
    OutOfDomainError
        if the ranks would wait for each other for ever.
    """
    orders = rank_orders(schedule, pp, num_micro_batches, vpp)
    last = pp * vpp - 1
    position: dict[tuple[Kind, int, int], int] = {}
    columns: list[tuple[int, int, int, int, int, int]] = []
    following, previous = [0] * pp, [-1] * pp
    waiting = list(range(pp))
    while waiting:
        moved = False
        for rank in waiting:
            while following[rank] < len(orders[rank]):
                kind, chunk, micro_batch = orders[rank][following[rank]]
                stage = chunk * pp + rank
                need = _need(kind, stage, micro_batch, last)
                if need is not None and need not in position:
                    break
                source = -1 if need is None else position[need]
                position[kind, stage, micro_batch] = len(columns)
                columns.append((int(kind), stage, rank, micro_batch, previous[rank], source))
                previous[rank] = len(columns) - 1
                following[rank] += 1
                moved = True
        waiting = [rank for rank in waiting if following[rank] < len(orders[rank])]
        if waiting and not moved:
            message = f"{schedule.name} with pp {pp}, {num_micro_batches} micro-batches, vpp {vpp} deadlocks"
            raise OutOfDomainError(message)
    return _Program(*(tuple(column) for column in zip(*columns, strict=True)))


def _hops(hop_s: Floats | None, num_configs: int, num_stages: int) -> Floats:
    """Return hops padded with a zero, so that index -1 (no hop) reads zero."""
    out = np.zeros((num_configs, num_stages))
    if hop_s is not None and num_stages > 1:
        out[:, :-1] = hop_s
    return out


def exact_timeline(
    schedule: Schedule,
    times: StageTimes,
    *,
    pp: int,
    num_micro_batches: int,
    vpp: int = 1,
    overlap_p2p: bool = False,
) -> tuple[Floats, Floats, tuple[tuple[int, int, int, int], ...]]:
    """Return start and end of every task, and what each task is.

    Parameters
    ----------
    schedule : order of tasks.
    times : durations of the `pp * vpp` virtual stages and the hops between them.
    pp, num_micro_batches, vpp : shape of the pipeline.
    overlap_p2p : sends run beside computation and only delay the receiver.

    Returns
    -------
    Start and end in seconds, shape (tasks, configurations), and (kind, virtual stage, rank, micro-batch) of
    each task.
    """
    program = _program(schedule, pp, num_micro_batches, vpp)
    num_stages = pp * vpp
    forward = np.atleast_2d(np.asarray(times.forward_s, np.float64))
    backward = np.atleast_2d(np.asarray(times.backward_s, np.float64))
    if forward.shape[1] != num_stages or backward.shape[1] != num_stages:
        message = (
            f"stage times need {num_stages} columns (pp * vpp), got {forward.shape[1]}, {backward.shape[1]}"
        )
        raise OutOfDomainError(message)
    weight = np.zeros_like(forward) if times.weight_s is None else np.atleast_2d(times.weight_s)
    if times.weight_s is None and schedule is Schedule.ZB_H1:
        message = "ZB_H1 needs weight_s: the weight-gradient share of the backward"
        raise OutOfDomainError(message)
    down = _hops(times.forward_hop_s, len(forward), num_stages)
    up = np.roll(_hops(times.backward_hop_s, len(forward), num_stages), 1, axis=1)
    durations = (forward.T, backward.T, weight.T)
    sends = (down.T, up.T, np.zeros_like(forward.T))
    starts = np.zeros((len(program.kind), len(forward)))
    ends, free = np.zeros_like(starts), np.zeros_like(starts)
    local = _is_local(program)
    zero = np.zeros(len(forward))
    for j, (kind, stage) in enumerate(zip(program.kind, program.stage, strict=True)):
        before, need = program.before[j], program.need[j]
        start = free[before] if before >= 0 else zero
        if need >= 0:
            ready = ends[need]
            if not local[j]:
                ready = ready + sends[program.kind[need]][program.stage[need]]
            start = np.maximum(start, ready)
        starts[j] = start
        ends[j] = start + durations[kind][stage]
        free[j] = ends[j] if overlap_p2p else ends[j] + sends[kind][stage]
    what = tuple(zip(program.kind, program.stage, program.rank, program.micro_batch, strict=True))
    return starts, ends, what


def _is_local(program: _Program) -> list[bool]:
    """Return which tasks get their input from their own rank."""
    return [
        need >= 0 and program.stage[need] == stage
        for need, stage in zip(program.need, program.stage, strict=True)
    ]


def exact_step_s(
    schedule: Schedule,
    times: StageTimes,
    *,
    pp: int,
    num_micro_batches: int,
    vpp: int = 1,
    overlap_p2p: bool = False,
) -> Floats:
    """Return the seconds from the first forward to the end of the last task, one per configuration.

    Parameters are those of `exact_timeline`.
    """
    _, ends, _ = exact_timeline(
        schedule, times, pp=pp, num_micro_batches=num_micro_batches, vpp=vpp, overlap_p2p=overlap_p2p
    )
    out: Floats = np.max(ends, axis=0)
    return out
