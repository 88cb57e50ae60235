"""What every pipeline rank runs, in order: the schedules as their frameworks write them down.

A task is (kind, chunk, micro-batch). Chunk c of rank r is virtual stage c * pp + r, except for ZB-V, whose
second chunk comes back from the last rank to the first.
"""

from enum import IntEnum
from functools import lru_cache

from hardware.errors import OutOfDomainError

__all__ = ["Kind", "Schedule", "Task", "rank_orders"]


class Schedule(IntEnum):
    """Order of forward and backward passes in one pipeline flush."""

    GPIPE = 0
    """All forwards, then all backwards."""
    ONE_F_ONE_B = 1
    """Warm-up forwards, then one forward and one backward by turns (PipeDream-Flush)."""
    INTERLEAVED = 2
    """The same over `vpp` model chunks per rank (Megatron-LM)."""
    ZB_H1 = 3
    """1F1B with weight gradients split off and moved into the bubble, at 1F1B's memory."""
    ZB_V = 4
    """Two chunks per rank in a V; no bubble when the three passes take equally long. Closed form only."""
    DUALPIPE = 5
    """Micro-batches from both ends, forward under backward; weights held twice. Closed form only."""


class Kind(IntEnum):
    """Part of a micro-batch's work on a chunk."""

    FORWARD = 0
    BACKWARD = 1
    """Whole backward, or only the input gradient where weight gradients are split off."""
    WEIGHT = 2


Task = tuple[Kind, int, int]


def _one_f_one_b(rank: int, pp: int, m: int) -> list[Task]:
    warm = min(m, pp - rank - 1)
    order: list[Task] = [(Kind.FORWARD, 0, i) for i in range(warm)]
    for i in range(m - warm):
        order += [(Kind.FORWARD, 0, warm + i), (Kind.BACKWARD, 0, i)]
    return order + [(Kind.BACKWARD, 0, i) for i in range(m - warm, m)]


def _interleaved(rank: int, pp: int, m: int, vpp: int) -> list[Task]:
    """Return Megatron-LM's interleaved order, in groups of `pp` micro-batches per chunk.

    A last group smaller than `pp` is run as it is (Megatron-LM accepts it only from `pp` on).
    """
    table = [
        (chunk, i)
        for start in range(0, m, pp)
        for chunk in range(vpp)
        for i in range(start, min(start + pp, m))
    ]
    total = m * vpp
    warm = min(total, (pp - rank - 1) * 2 + (vpp - 1) * pp)
    if m == pp:
        warm = total
    forward: list[Task] = [(Kind.FORWARD, chunk, i) for chunk, i in table]
    backward: list[Task] = [(Kind.BACKWARD, vpp - 1 - chunk, i) for chunk, i in table]
    order = forward[:warm]
    for k in range(total - warm):
        order += [forward[warm + k], backward[k]]
    return order + backward[total - warm :]


def _zb_h1(rank: int, pp: int, m: int) -> list[Task]:
    """Return 1F1B's order with each weight gradient held back by up to `rank` micro-batches.

    Later ranks hold back more, so that their last input gradients leave early and the early ranks fill
    the wait for them with weight gradients.
    """
    order: list[Task] = []
    done = weights = 0
    for task in _one_f_one_b(rank, pp, m):
        order.append(task)
        if task[0] is Kind.BACKWARD:
            done += 1
            if done - weights > rank:
                order.append((Kind.WEIGHT, 0, weights))
                weights += 1
    return order + [(Kind.WEIGHT, 0, i) for i in range(weights, m)]


@lru_cache(maxsize=64)
def rank_orders(
    schedule: Schedule, pp: int, num_micro_batches: int, vpp: int = 1
) -> tuple[tuple[Task, ...], ...]:
    """Return the tasks of every rank in the order it runs them.

    Raises
    ------
    OutOfDomainError
        for a schedule that is known by its closed form only.
    """
    m = num_micro_batches
    if schedule is Schedule.GPIPE:
        forward: list[Task] = [(Kind.FORWARD, 0, i) for i in range(m)]
        orders = [forward + [(Kind.BACKWARD, 0, i) for i in range(m)] for _ in range(pp)]
    elif schedule is Schedule.ONE_F_ONE_B:
        orders = [_one_f_one_b(rank, pp, m) for rank in range(pp)]
    elif schedule is Schedule.INTERLEAVED:
        orders = [_interleaved(rank, pp, m, vpp) for rank in range(pp)]
    elif schedule is Schedule.ZB_H1:
        orders = [_zb_h1(rank, pp, m) for rank in range(pp)]
    else:
        message = (
            f"{schedule.name} has a closed form only; exact schedules: GPIPE, ONE_F_ONE_B, INTERLEAVED, ZB_H1"
        )
        raise OutOfDomainError(message)
    return tuple(tuple(order) for order in orders)
