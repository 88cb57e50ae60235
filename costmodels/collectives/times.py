"""Seconds that a collective takes on a group of ranks: the fastest algorithm on the levels it spans.

`collective_s(op, message_bytes, stride, degree, levels)` answers for rows of equal length. Groups repeat, so
the formulas run once per distinct (stride, degree) and each row costs a few passes; `Envelope` keeps the
distinct groups for callers that ask about many buffers.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.collectives.algorithms import candidates
from costmodels.collectives.curves import find_technology
from costmodels.collectives.groups import NCCL, SERVING, Algorithm, Collective, Group
from hardware.levels import Level, LinkKind

__all__ = [
    "NCCL",
    "SERVING",
    "Algorithm",
    "Collective",
    "Envelope",
    "collective_choice",
    "collective_log_sigma",
    "collective_s",
    "envelope",
    "p2p_log_sigma",
    "p2p_s",
    "unknown_technologies",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


_MAX_TABLE = 1 << 22
"""Keys up to which distinct groups are found through a table instead of a sort."""


@dataclass(frozen=True, slots=True, eq=False)
class Envelope:
    """Time formulas of every allowed algorithm on distinct groups, and which group each row is.

    Arrays have shape (algorithms, groups); an algorithm that does not exist for a group starts at infinity.
    """

    algorithms: tuple[Algorithm, ...]
    alpha_s: Floats
    extra_s: Floats
    half_bytes: Floats
    s_per_byte: Floats
    log_sigma: Floats
    row_group: Ints | None
    """Group of each row; None when there is only one group."""

    def _times(self, k: int, message_bytes: Floats) -> Floats:
        pick = self.row_group
        columns = (self.alpha_s[k], self.extra_s[k], self.half_bytes[k], self.s_per_byte[k])
        alpha, extra, half, slope = columns if pick is None else (c[pick] for c in columns)
        out: Floats = alpha + extra * (message_bytes / (message_bytes + half)) + slope * message_bytes
        return out

    def seconds(self, message_bytes: Floats) -> Floats:
        """Return the time of the fastest algorithm for each row's buffer; an empty buffer is not sent."""
        best = self._times(0, message_bytes)
        for k in range(1, len(self.algorithms)):
            best = np.minimum(best, self._times(k, message_bytes))
        return best if bool(np.all(message_bytes > 0)) else np.where(message_bytes > 0, best, 0.0)

    def _winner(self, message_bytes: Floats) -> Ints:
        times = np.stack([self._times(k, message_bytes) for k in range(len(self.algorithms))])
        winner: Ints = np.argmin(times, axis=0)
        return winner

    def choice(self, message_bytes: Floats) -> Ints:
        """Return the `Algorithm` code of the fastest algorithm for each row's buffer."""
        codes = np.array([int(a) for a in self.algorithms], dtype=np.int64)[self._winner(message_bytes)]
        group = self.row_group if self.row_group is not None else np.zeros(len(codes), dtype=np.int64)
        idle = self.s_per_byte[0] == 0
        return np.where(idle[group], int(Algorithm.NONE), codes)

    def sigma(self, message_bytes: Floats) -> Floats:
        """Return the standard deviation of ln(measured / predicted) expected for each row."""
        group = self.row_group if self.row_group is not None else np.zeros(len(message_bytes), dtype=np.int64)
        out: Floats = self.log_sigma[self._winner(message_bytes), group]
        return out


def _distinct(stride: Ints, degree: Ints) -> tuple[Ints, Ints, Ints | None]:
    """Return distinct strides and degrees, and the index of each row among them."""
    if len(stride) == 0 or (np.all(stride == stride[0]) and np.all(degree == degree[0])):
        return stride[:1], degree[:1], None
    base = int(np.max(degree)) + 1
    row_keys = stride * base + degree
    top = int(np.max(row_keys)) + 1
    if top > _MAX_TABLE:
        keys, index = np.unique(row_keys, return_inverse=True)
        return keys // base, keys % base, index
    seen = np.zeros(top, dtype=bool)
    seen[row_keys] = True
    keys = np.flatnonzero(seen)
    position = np.zeros(top, dtype=np.int64)
    position[keys] = np.arange(len(keys))
    return keys // base, keys % base, position[row_keys]


def envelope(
    op: Collective,
    stride: Ints,
    degree: Ints,
    levels: tuple[Level, ...],
    allowed: frozenset[Algorithm] = NCCL,
) -> Envelope:
    """Return the time formulas of `op` on the groups of all rows.

    Parameters
    ----------
    op : what the group does.
    stride : distance between neighbouring members, in ranks. shape (rows,)
    degree : members of the group. shape (rows,)
    levels : levels of the cluster, inner to outer.
    allowed : algorithms that the library may pick from.
    """
    stride, degree = np.atleast_1d(np.asarray(stride, np.int64)), np.atleast_1d(np.asarray(degree, np.int64))
    stride, degree = np.broadcast_arrays(stride, degree)
    some_stride, some_degree, index = _distinct(stride, degree)
    found = candidates(op, Group.of(some_stride, some_degree, levels), allowed)
    alone = some_degree <= 1

    def column(name: str, when_alone: float) -> Floats:
        return np.stack([np.where(alone, when_alone, getattr(terms, name)) for _, terms in found])

    usable = np.stack([terms.usable for _, terms in found])
    return Envelope(
        algorithms=tuple(name for name, _ in found),
        alpha_s=np.where(usable | alone, column("alpha_s", 0.0), np.inf),
        extra_s=column("extra_s", 0.0),
        half_bytes=column("half_bytes", 1.0),
        s_per_byte=column("s_per_byte", 0.0),
        log_sigma=column("log_sigma", 0.0),
        row_group=index,
    )


def collective_s(
    op: Collective,
    message_bytes: Floats,
    stride: Ints,
    degree: Ints,
    levels: tuple[Level, ...],
    allowed: frozenset[Algorithm] = NCCL,
) -> Floats:
    """Return the seconds of one collective per row, every group of its kind running at once.

    Parameters
    ----------
    op : what the group does.
    message_bytes : full (gathered or unreduced) buffer of one rank: the size of nccl-tests. shape (rows,) [B]
    stride : distance between neighbouring members, in ranks. shape (rows,)
    degree : members of the group; a group of one costs nothing. shape (rows,)
    levels : levels of the cluster, inner to outer.
    allowed : algorithms that the library may pick from: `NCCL` or `SERVING`.
    """
    size = np.atleast_1d(np.asarray(message_bytes, np.float64))
    return envelope(op, stride, degree, levels, allowed).seconds(size)


def collective_choice(
    op: Collective,
    message_bytes: Floats,
    stride: Ints,
    degree: Ints,
    levels: tuple[Level, ...],
    allowed: frozenset[Algorithm] = NCCL,
) -> Ints:
    """Return the `Algorithm` codes behind `collective_s`."""
    size = np.atleast_1d(np.asarray(message_bytes, np.float64))
    return envelope(op, stride, degree, levels, allowed).choice(size)


def collective_log_sigma(
    op: Collective,
    message_bytes: Floats,
    stride: Ints,
    degree: Ints,
    levels: tuple[Level, ...],
    allowed: frozenset[Algorithm] = NCCL,
) -> Floats:
    """Return the standard deviation of ln(measured / predicted) expected of `collective_s`."""
    size = np.atleast_1d(np.asarray(message_bytes, np.float64))
    return envelope(op, stride, degree, levels, allowed).sigma(size)


def unknown_technologies(levels: tuple[Level, ...]) -> tuple[str, ...]:
    """Return the names of levels whose technology nothing was measured on: generic numbers price them."""
    return tuple(level.name for level in levels if not find_technology(level.technology).known)


def _hop(level: Level) -> tuple[float, float, float, float]:
    """Return start-up, bulk extra, half size and seconds per byte of one send across a level."""
    tech = find_technology(level.technology)
    traits = tech.traits
    rate = level.nominal_bytes_per_s(traits.p2p_efficiency)
    if level.pair_bytes_per_s and level.kind in (LinkKind.MESH, LinkKind.TORUS):
        rate = min(rate, level.pair_bytes_per_s)
    curve = tech.curves.get("p2p") or tech.curves.get("all_to_all")
    if curve is not None:
        scale = rate / tech.reference_bytes_per_s
        alpha, extra, half, busbw, _ = (float(v[0]) for v in curve.at(np.array([2.0])))
        return alpha, extra, half * scale / 2, 1 / (busbw * scale)
    hop = traits.hop_s if traits.hop_s is not None else level.latency_s
    slope = 1 / (traits.p2p_efficiency * rate)
    half = max(traits.bulk_hop_s / slope, 1.0)
    return traits.launch_s + hop, traits.bulk_hop_s, half, slope


def _hop_shares(stride: Ints, degree: Ints, levels: tuple[Level, ...]) -> Floats:
    """Return which share of a chain's hops crosses each level; shape (levels, rows)."""
    factors = Group.of(stride, np.maximum(degree, 2), levels).factors
    outward = np.cumprod(factors[::-1], axis=0)[::-1]
    hops = outward - np.vstack([outward[1:], np.ones(len(degree))])
    out: Floats = hops / np.maximum(np.sum(hops, axis=0), 1.0)
    return out


def p2p_s(message_bytes: Floats, stride: Ints, levels: tuple[Level, ...], degree: Ints | int = 2) -> Floats:
    """Return the mean seconds of one send between neighbours of a chain of `degree` ranks, `stride` apart.

    Every rank of the sending stage sends its own part at once, so each has its device's share of the level.

    Parameters
    ----------
    message_bytes : what one rank sends. shape (rows,) [B]
    stride : ranks between neighbouring stages. shape (rows,)
    levels : levels of the cluster, inner to outer.
    degree : length of the chain; hops inside a machine and across are averaged over it.
    """
    size = np.atleast_1d(np.asarray(message_bytes, np.float64))
    stride, length = np.broadcast_arrays(np.asarray(stride, np.int64), np.asarray(degree, np.int64))
    some_stride, some_length, index = _distinct(np.atleast_1d(stride), np.atleast_1d(length))
    shares = _hop_shares(some_stride, some_length, levels)
    total = np.zeros(np.broadcast_shapes(size.shape, (1,) if index is None else index.shape))
    for share, level in zip(shares, levels, strict=True):
        if np.any(share > 0):
            alpha, extra, half, slope = _hop(level)
            part = share if index is None else share[index]
            total = total + part * (alpha + extra * (size / (size + half)) + slope * size)
    return np.where((size > 0) & (length > 1), total, 0.0)


def p2p_log_sigma(stride: Ints, levels: tuple[Level, ...], degree: Ints | int = 2) -> Floats:
    """Return the standard deviation of ln(measured / predicted) expected of `p2p_s`."""
    stride, length = np.broadcast_arrays(np.asarray(stride, np.int64), np.asarray(degree, np.int64))
    shares = _hop_shares(np.atleast_1d(stride), np.atleast_1d(length), levels)
    sigma = np.array([max(find_technology(level.technology).traits.log_sigma, 0.2) for level in levels])
    out: Floats = np.max(np.where(shares > 0, sigma[:, None], 0.0), axis=0)
    return out
