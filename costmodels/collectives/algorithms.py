r"""The algorithms that a collective may run, each as numbers of one time formula.

Every algorithm on every group costs

.. math:: t(S) = \alpha + c \frac{S}{S + h} + \sigma S

so that the best one for many buffers is a minimum over a few arrays. A group is described by how it fans out:
:math:`f_i` ways at level :math:`i`, with :math:`g_i = \prod_{j<i} f_j` members inside each instance of the
level below. A level's `bytes_per_s` is what each device gets when all of them use it, so a group owns the
links of its members and no more: with eight members in a node a flat ring crosses nodes at eight times a
device's share, with one member at one share, and groups that run side by side are already counted.

References
----------
NCCL's ring, double binary tree, NVLS, NVLS tree and PAT algorithms; the hierarchical form is that of
reduce-scatter in the node, all-reduce across, all-gather in the node (for example arXiv 2504.18658).
"""

import numpy as np
import numpy.typing as npt

from costmodels.collectives.curves import traffic_factor
from costmodels.collectives.groups import (
    BULK_SHARE,
    NCCL,
    Algorithm,
    Collective,
    Group,
    Part,
    Terms,
    level_part,
)
from hardware.levels import LinkKind

__all__ = ["candidates"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_TREE_EFFICIENCY = 0.92
"""Bandwidth of NCCL's trees over its rings (its tuning model, recalled)."""
_RECURSIVE_EFFICIENCY = 0.75
"""Assumed: recursive doubling needs full bandwidth at every distance."""
_RECURSIVE_MIN_DEGREE = 256
"""Below it the libraries in use run rings and trees (arXiv 2504.18658 gains from hundreds of devices)."""
_NVLS_LOSS_PER_DOUBLING = 0.058
"""Switch reduction: 0.60 of the link on 8 ranks, 0.49 on 72 (stas00/ml-engineering@744d01e)."""
_NVLS_GENERIC = 0.6


def _launch(group: Group) -> Floats:
    """Return the launch time: the slowest of the levels that take part."""
    launch = np.array([tech.traits.launch_s for tech in group.technologies])
    out: Floats = np.max(np.where(group.factors > 1, launch[:, None], 0.0), axis=0)
    return out


def _sigma(parts: list[Part], group: Group) -> Floats:
    stacked = np.stack([part.log_sigma for part in parts])
    out: Floats = np.max(np.where(group.factors > 1, stacked, 0.0), axis=0)
    return out


def _single(group: Group) -> npt.NDArray[np.bool_]:
    """Return which groups live inside one level."""
    out: npt.NDArray[np.bool_] = np.sum(group.factors > 1, axis=0) <= 1
    return out


def ring(op: Collective, group: Group) -> Terms:
    r"""Return a flat ring: bandwidth :math:`\min_i g_i B_i`, latency of every hop of every level.

    Inside one level this is the measured curve of that level. The axes of a torus work at the same time, in
    both directions: their bandwidths add, and data travels half of each side.
    """
    name = "all_gather" if op is Collective.BROADCAST else op.value
    parts = [level_part(name, group, i) for i in range(len(group.levels))]
    passes = 2 if op is Collective.ALL_REDUCE else 1
    outward = np.cumprod(group.factors[::-1], axis=0)[::-1]
    hops = outward - np.vstack([outward[1:], np.ones(len(group.degree))])
    alpha, extra = _launch(group), np.zeros(len(group.degree))
    rate = np.full(len(group.degree), np.inf)
    half_single, torus_rate = np.zeros(len(group.degree)), np.zeros(len(group.degree))
    for i, part in enumerate(parts):
        active, axes = group.factors[i] > 1, group.torus_axes(i)
        steps = axes * group.factors[i] ** (1 / axes) / 2 if axes else hops[i]
        step_s = part.step_s + (group.away_step_s if group.network(i) else 0.0)
        alpha = alpha + np.where(active, passes * steps * step_s, 0.0)
        extra = extra + np.where(active, passes * steps * part.bulk_step_s, 0.0)
        if axes:
            torus_rate = torus_rate + np.where(active, part.busbw, 0.0)
        else:
            rate = np.minimum(rate, np.where(active, group.inner[i] * part.busbw, np.inf))
        half_single = np.where(active, part.half_bytes, half_single)
    rate = np.where(torus_rate > 0, np.minimum(rate, torus_rate), rate)
    slope = traffic_factor(op.value, group.degree) / rate
    half = np.where(_single(group), half_single, _bulk_half(extra, slope))
    return Terms(alpha, extra, half, slope, _sigma(parts, group), np.ones(len(group.degree), dtype=bool))


def _bulk_half(extra_s: Floats, s_per_byte: Floats) -> Floats:
    """Return the size around which the library goes over to its bulk protocol."""
    return np.maximum(BULK_SHARE * extra_s / np.maximum(s_per_byte, 1e-18), 1.0)


def _network_active(group: Group) -> npt.NDArray[np.bool_]:
    network = np.array([group.network(i) for i in range(len(group.levels))])
    out: npt.NDArray[np.bool_] = np.any((group.factors > 1) & network[:, None], axis=0)
    return out


def _across(group: Group, parts: list[Part]) -> tuple[Floats, Floats, Floats]:
    """Return latency, bulk latency and seconds per byte of trees through the network levels.

    A double binary tree sends the buffer twice out of every node, once when there are only two.
    """
    network = np.array([group.network(i) for i in range(len(group.levels))])
    nodes = np.prod(np.where(network[:, None], group.factors, 1.0), axis=0)
    sends = np.where(nodes == 2, 1.0, 2.0)
    zero = np.zeros(len(group.degree))
    alpha, extra, slope = zero, zero, zero
    for i, part in enumerate(parts):
        if network[i]:
            depth = np.ceil(np.log2(group.factors[i]))
            alpha = alpha + 2 * depth * part.step_s
            extra = extra + 2 * depth * part.bulk_step_s
            slope = np.maximum(
                slope, np.where(group.factors[i] > 1, sends / (group.inner[i] * part.busbw), 0.0)
            )
    return alpha, extra, slope


def tree(group: Group) -> Terms:
    """Return the double binary tree of an all-reduce: few steps, slightly less bandwidth than a ring."""
    parts = [level_part("all_reduce", group, i) for i in range(len(group.levels))]
    alpha, extra, slope = _across(group, parts)
    alpha = alpha + _launch(group)
    for i, part in enumerate(parts):
        if not group.network(i):
            chain = 2 * (group.factors[i] - 1)
            alpha, extra = alpha + chain * part.step_s, extra + chain * part.bulk_step_s
            inside = np.where(group.factors[i] > 1, 2 / (group.inner[i] * part.busbw), 0.0)
            slope = np.maximum(slope, inside)
    slope = slope / _TREE_EFFICIENCY
    return Terms(alpha, extra, _bulk_half(extra, slope), slope, _sigma(parts, group), _network_active(group))


def _nvls_part(group: Group) -> tuple[Part, Floats, npt.NDArray[np.bool_]]:
    """Return the innermost level's switch reduction, its seconds per byte and where it exists.

    Each rank sends the buffer and receives its n-th part, then the reverse: :math:`(1 + 1/n) S / (e b)`.
    """
    level, tech, n = group.levels[0], group.technologies[0], group.factors[0]
    base = level_part("all_reduce", group, 0)
    loss = np.maximum(1 - _NVLS_LOSS_PER_DOUBLING * np.maximum(np.log2(np.maximum(n, 1) / 8), 0.0), 0.5)
    curve = tech.curves.get("all_reduce_nvls")
    if curve is None:
        efficiency = _NVLS_GENERIC
    else:
        measured = curve.degrees[-1]
        efficiency = (
            curve.bytes_per_s[-1] / tech.reference_bytes_per_s * (measured + 1) / (2 * (measured - 1))
        )
    slope = (1 + 1 / n) / (efficiency * loss * group.rate(0))
    least = tech.nvls_min_degree or 3
    return base, slope, (n >= least) & level.in_network_reduce


def nvls(group: Group) -> Terms:
    """Return the all-reduce that the scale-up switch computes."""
    base, slope, usable = _nvls_part(group)
    return Terms(base.alpha_s, base.extra_s, base.half_bytes, slope, base.log_sigma,
                 usable & (group.degree == group.factors[0]))  # fmt: skip


def nvls_tree(group: Group) -> Terms:
    """Return switch reduction inside and trees across, pipelined: the slower sets the bandwidth."""
    base, inside, usable = _nvls_part(group)
    parts = [level_part("all_reduce", group, i) for i in range(len(group.levels))]
    alpha, extra, across = _across(group, parts)
    slope = np.maximum(inside, across)
    alpha, extra = alpha + base.alpha_s, extra + base.extra_s
    plain = np.ones(len(group.degree), dtype=bool)
    for i in range(1, len(group.levels)):
        if not group.network(i):
            plain &= group.factors[i] <= 1
    return Terms(alpha, extra, _bulk_half(extra, slope), slope, _sigma(parts, group),
                 usable & plain & _network_active(group))  # fmt: skip


def sharp(group: Group) -> Terms:
    """Return an all-reduce whose network switches add: each byte goes up once and comes down once."""
    parts = [level_part("all_reduce", group, i) for i in range(len(group.levels))]
    alpha, extra, slope = _launch(group), np.zeros(len(group.degree)), np.zeros(len(group.degree))
    usable = _network_active(group)
    for i, part in enumerate(parts):
        active = group.factors[i] > 1
        steps = np.where(active, 2.0 if group.network(i) else 2 * (group.factors[i] - 1), 0.0)
        alpha, extra = alpha + steps * part.step_s, extra + steps * part.bulk_step_s
        sends = 1.0 if group.network(i) else traffic_factor("all_reduce", group.factors[i])
        slope = np.maximum(slope, np.where(active, sends / (group.inner[i] * part.busbw), 0.0))
        if group.network(i) and not group.levels[i].in_network_reduce:
            usable = usable & ~active
    return Terms(alpha, extra, _bulk_half(extra, slope), slope, _sigma(parts, group), usable)


def staged(op: Collective, group: Group, *, recursive: bool) -> Terms:
    """Return phases level after level, inner levels on the full buffer, outer ones on their share of it.

    An all-reduce is a reduce-scatter outwards and an all-gather inwards; across the network either rings
    or recursive halving and doubling.
    """
    names = {
        Collective.ALL_REDUCE: ("reduce_scatter", "all_gather"),
        Collective.ALL_GATHER: ("all_gather",),
        Collective.REDUCE_SCATTER: ("reduce_scatter",),
    }[op]
    zero = np.zeros(len(group.degree))
    alpha, extra, moment, slope, sigma = zero, zero, zero, zero, zero
    for name in names:
        for i in range(len(group.levels)):
            part, n, active = level_part(name, group, i), group.factors[i], group.factors[i] > 1
            fast = recursive and (group.network(i) or group.levels[i].kind is LinkKind.SWITCH)
            steps = np.ceil(np.log2(n)) if fast else n - 1
            launch = group.technologies[i].traits.launch_s
            share = group.inner[i] * part.busbw * (_RECURSIVE_EFFICIENCY if fast else 1.0)
            alpha = alpha + np.where(active, launch + steps * part.step_s, 0.0)
            level_extra = np.where(active, steps * part.bulk_step_s, 0.0)
            extra, moment = extra + level_extra, moment + level_extra * part.half_bytes * group.inner[i]
            slope = slope + np.where(active, (n - 1) / n / share, 0.0)
            sigma = np.maximum(sigma, np.where(active, part.log_sigma, 0.0))
    half = np.maximum(moment / np.maximum(extra, 1e-18), 1.0)
    usable = (group.degree >= _RECURSIVE_MIN_DEGREE) & (~_single(group) | recursive)
    if op is not Collective.ALL_REDUCE and group.rings_only:
        usable = usable & ~_network_active(group)
    return Terms(alpha, extra, half, slope, sigma, usable)


def custom(group: Group) -> Terms:
    """Return the measured one-shot and two-shot all-reduce kernels of inference engines, inside one level."""
    curve = group.technologies[0].curves.get("all_reduce_custom")
    if curve is None:
        none = np.zeros(len(group.degree))
        return Terms(none, none, none + 1, none, none, np.zeros(len(group.degree), dtype=bool))
    part = level_part("all_reduce_custom", group, 0)
    slope = traffic_factor("all_reduce", group.factors[0]) / part.busbw
    usable = (group.degree == group.factors[0]) & (group.degree <= curve.degrees[-1])
    return Terms(part.alpha_s, part.extra_s, part.half_bytes, slope, part.log_sigma, usable)


def exchange(group: Group) -> Terms:
    r"""Return an all-to-all: every level carries what must cross it, the busiest one sets the time.

    A network level carries all that leaves the instances below it, :math:`(n - g_i)/n` of the buffer; a level
    inside a machine what stays in it. On a torus the bisection of its longest side binds.
    """
    parts = [level_part("all_to_all", group, i) for i in range(len(group.levels))]
    n = group.degree
    alpha, extra, slope, half = _launch(group), np.zeros(len(n)), np.zeros(len(n)), np.ones(len(n))
    for i, part in enumerate(parts):
        f, g, active = group.factors[i], group.inner[i], group.factors[i] > 1
        traits = group.technologies[i].traits
        outside = f * g if not group.network(i) else n
        slope = np.maximum(slope, np.where(active, (outside - g) / n / part.busbw, 0.0))
        peers = np.where(active, (f - 1) * g, 0.0)
        single = part.alpha_s - traits.launch_s
        many = part.step_s + peers * traits.peer_s
        alpha = alpha + np.where(active, np.where(_single(group), single, many), 0.0)
        extra = np.maximum(extra, np.where(active, part.extra_s, 0.0))
        half = np.where(active, np.maximum(half, part.half_bytes), half)
        if group.torus_axes(i):
            slope = np.where(active, np.maximum(slope, _torus_bisection(group, i, part)), slope)
    return Terms(alpha, extra, half, slope, _sigma(parts, group), np.ones(len(n), dtype=bool))


def _torus_bisection(group: Group, i: int, part: Part) -> Floats:
    """Return seconds per byte of an all-to-all across a torus: S d / (8 b) for side d and one-way link b."""
    axes = group.torus_axes(i)
    side = np.ceil(group.factors[i] ** (1 / axes))
    slope: Floats = side / (8 * part.busbw / (2 * axes))
    return slope


def candidates(
    op: Collective, group: Group, allowed: frozenset[Algorithm] = NCCL
) -> list[tuple[Algorithm, Terms]]:
    """Return the algorithms that may run `op`, each with its terms on every group."""
    if op is Collective.ALL_TO_ALL:
        return [(Algorithm.EXCHANGE, exchange(group))]
    found = [(Algorithm.RING, ring(op, group))]
    if op is Collective.ALL_REDUCE:
        makers = {
            Algorithm.TREE: tree,
            Algorithm.NVLS: nvls,
            Algorithm.NVLS_TREE: nvls_tree,
            Algorithm.SHARP: sharp,
            Algorithm.CUSTOM: custom,
        }
        found += [(name, make(group)) for name, make in makers.items() if name in allowed]
    if op is not Collective.BROADCAST:
        for name in (Algorithm.HIERARCHICAL, Algorithm.RECURSIVE):
            if name in allowed:
                found.append((name, staged(op, group, recursive=name is Algorithm.RECURSIVE)))
    return [(name, terms) for name, terms in found if bool(np.any(terms.usable))]
