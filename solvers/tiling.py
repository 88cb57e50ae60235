r"""Devices of one host into equal groups that hold as much link bandwidth inside as possible.

With rates :math:`r_{ij}` of direct links and groups of :math:`k` devices, over all partitions, the least
:math:`\sum_{i,j \in g} r_{ij}` of a group is made largest, then the sum over groups. Hosts are small, so all
partitions are tried: 35 for eight devices in fours, 105 in pairs.
"""

from collections.abc import Iterator
from itertools import combinations
from math import factorial

import numpy as np
import numpy.typing as npt

__all__ = ["best_tiling", "partitions"]

Floats = npt.NDArray[np.float64]
Groups = tuple[tuple[int, ...], ...]

_MAX_PARTITIONS = 10_000


def partitions(num_devices: int, size: int) -> Iterator[Groups]:
    """Yield all partitions into groups of `size`, the one in the order of the devices first."""
    if num_devices % size:
        message = f"{num_devices} devices do not fall into groups of {size}"
        raise ValueError(message)
    yield from _split(tuple(range(num_devices)), size)


def _split(left: tuple[int, ...], size: int) -> Iterator[Groups]:
    if not left:
        yield ()
        return
    first, rest = left[0], left[1:]
    for others in combinations(rest, size - 1):
        remaining = tuple(device for device in rest if device not in others)
        for following in _split(remaining, size):
            yield ((first, *others), *following)


def best_tiling(bytes_per_s: Floats, size: int) -> Groups | None:
    """Return the best partition, the first of equals; None where a host has too many to try.

    Parameters
    ----------
    bytes_per_s : direct links between devices. shape (n, n) [B/s]
    size : devices of one group; divides n.
    """
    count = len(bytes_per_s)
    groups = count // size
    if factorial(count) // (factorial(size) ** groups * factorial(groups)) > _MAX_PARTITIONS:
        return None
    best: Groups | None = None
    best_score = (-1.0, -1.0)
    for partition in partitions(count, size):
        inside = [float(bytes_per_s[np.ix_(group, group)].sum()) for group in partition]
        score = (min(inside), sum(inside))
        if score > best_score:
            best, best_score = partition, score
    return best
