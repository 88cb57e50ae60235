"""Longest paths of a graph of operations."""

import numpy as np
import numpy.typing as npt

from hardware.errors import InputError

__all__ = ["check_graph", "makespan_s", "topological"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def topological(before: Ints, after: Ints, num: int) -> list[int]:
    """Return the operations so that each comes after all that it waits for; shorter where a cycle is."""
    waits = np.bincount(after, minlength=num).tolist()
    order = np.argsort(before, kind="stable")
    targets, edges = after[order].tolist(), np.searchsorted(before[order], np.arange(num + 1)).tolist()
    ready = [i for i in range(num) if not waits[i]]
    for i in ready:  # grows while it is walked
        for j in targets[edges[i] : edges[i + 1]]:
            waits[j] -= 1
            if not waits[j]:
                ready.append(j)
    return ready


def check_graph(before: Ints, after: Ints, num: int) -> None:
    """Refuse edges that name no operation, and cycles.

    Raises
    ------
    InputError
        saying which.
    """
    if len(before) != len(after) or (len(before) and (min(before.min(), after.min()) < 0)):
        message = "edges need two operations each, counted from 0"
        raise InputError(message)
    if len(before) and max(int(before.max()), int(after.max())) >= num:
        message = f"an edge names operation {max(int(before.max()), int(after.max()))}; there are {num}"
        raise InputError(message)
    if len(topological(before, after, num)) < num:
        message = "operations wait for each other in a circle"
        raise InputError(message)


def makespan_s(before: Ints, after: Ints, time_s: Floats) -> float:
    """Return when the last operation ends if each starts as soon as it can. [s]"""
    num = len(time_s)
    order = np.argsort(after, kind="stable")
    sources, edges = before[order].tolist(), np.searchsorted(after[order], np.arange(num + 1)).tolist()
    end = [0.0] * num
    for j in topological(before, after, num):
        start = max((end[i] for i in sources[edges[j] : edges[j + 1]]), default=0.0)
        end[j] = start + float(time_s[j])
    return max(end, default=0.0)
