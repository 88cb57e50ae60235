"""Groups of ranks seen through the levels of a cluster, and the cost of a collective inside one level."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum

import numpy as np
import numpy.typing as npt

from costmodels.collectives.curves import Technology, find_technology, traffic_factor
from hardware.levels import Level, LinkKind, group_factors

__all__ = ["BULK_SHARE", "NCCL", "SERVING", "Algorithm", "Collective", "Group", "Part", "Terms", "level_part"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_NETWORK = (LinkKind.RAIL, LinkKind.FABRIC, LinkKind.WAN)
BULK_SHARE = 0.7
"""Half size of the bulk latency over latency x bandwidth; fitted NVLink 3, 4, 5 at 8 ranks: 1.0, 0.6, 0.6."""


class Collective(StrEnum):
    """What a group does; the buffer is the full one per rank, as the size of nccl-tests."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
    BROADCAST = "broadcast"


class Algorithm(IntEnum):
    """How it is done."""

    NONE = 0
    """A group of one."""
    RING = 1
    """One flat ring (or several over disjoint links) through all members."""
    TREE = 2
    """Double binary tree between nodes, chains inside."""
    NVLS = 3
    """The switch of one node or rack adds and multicasts."""
    NVLS_TREE = 4
    """The switch inside, trees between, one per rail."""
    SHARP = 5
    """The network's switches add."""
    HIERARCHICAL = 6
    """Scatter inside, rings across on every rail, gather inside."""
    RECURSIVE = 7
    """The same with recursive halving and doubling across."""
    CUSTOM = 8
    """One-shot or two-shot kernel on peer memory, for small buffers when serving."""
    EXCHANGE = 9
    """Every pair sends directly."""


NCCL = frozenset(Algorithm) - {Algorithm.CUSTOM}
"""What a training library picks from."""
SERVING = frozenset(Algorithm)
"""What an inference engine picks from: also the custom all-reduce kernels."""


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """Numbers of the time formula, one per group; `usable` is False where an algorithm does not exist."""

    alpha_s: Floats
    extra_s: Floats
    half_bytes: Floats
    s_per_byte: Floats
    log_sigma: Floats
    usable: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Groups of ranks seen through the levels; arrays have shape (levels, groups) or (groups,)."""

    levels: tuple[Level, ...]
    technologies: tuple[Technology, ...]
    degree: Floats
    factors: Floats
    inner: Floats
    """Members below each level: the product of the factors of the levels inside it."""
    slowdown: Floats
    """Contention of the network levels, at least 1."""

    @staticmethod
    def of(stride: Ints, degree: Ints, levels: tuple[Level, ...]) -> "Group":
        """Return the groups of `degree` ranks, every `stride`-th."""
        factors = group_factors(tuple(level.size for level in levels), stride, degree).astype(np.float64)
        inner = np.vstack([np.ones(len(degree)), np.cumprod(factors, axis=0)[:-1]])
        technologies = tuple(find_technology(level.technology) for level in levels)
        span = (stride * degree).astype(np.float64)
        slowdown = np.ones_like(factors)
        for i, (level, tech) in enumerate(zip(levels, technologies, strict=True)):
            traits = tech.traits
            if level.kind in _NETWORK and traits.contention_growth:
                grown = traits.contention_growth * (span / traits.contention_span) ** traits.contention_power
                slowdown[i] = 1 + np.where(factors[i] > 1, grown, 0.0)
        return Group(levels, technologies, degree.astype(np.float64), factors, inner, slowdown)

    @property
    def away_step_s(self) -> float:
        """What the devices' library adds to each step of a ring between machines."""
        return max(tech.traits.away_step_s for tech in self.technologies)

    @property
    def rings_only(self) -> bool:
        """Whether that library has nothing but rings to gather and scatter between machines."""
        return any(tech.traits.rings_only for tech in self.technologies)

    def network(self, i: int) -> bool:
        """Return whether level `i` is a routed network rather than the inside of a machine."""
        return self.levels[i].kind in _NETWORK

    def torus_axes(self, i: int) -> int:
        """Return how many axes of a torus level `i` holds; 0 for any other kind."""
        level = self.levels[i]
        if level.kind is not LinkKind.TORUS:
            return 0
        link_bytes_per_s = level.pair_bytes_per_s or level.bytes_per_s / 2
        return max(round(level.bytes_per_s / link_bytes_per_s / 2), 1)

    def rate(self, i: int) -> Floats:
        """Return the rated bytes per second that a member has among its peers at level `i`.

        On a mesh it has one direct link per peer, so few peers mean few links.
        """
        level = self.levels[i]
        nominal = level.nominal_bytes_per_s(self.technologies[i].traits.p2p_efficiency)
        full = np.full_like(self.degree, nominal)
        if level.kind is LinkKind.MESH and level.pair_bytes_per_s:
            full = np.minimum(full, np.maximum(self.factors[i] - 1, 1) * level.pair_bytes_per_s)
        if level.kind is LinkKind.PCIE and level.pair_bytes_per_s:
            full = np.maximum(full, level.pair_bytes_per_s)
        return full


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A collective of f_i members at one level alone: terms, and the same per step."""

    alpha_s: Floats
    extra_s: Floats
    half_bytes: Floats
    busbw: Floats
    step_s: Floats
    bulk_step_s: Floats
    log_sigma: Floats


def _efficiency(op: str, group: Group, i: int) -> Floats:
    """Return the saturated bus bandwidth at level `i` over rated.

    Outer levels of a host (root complexes, sockets) are rated by what is known to pass them.
    """
    traits = group.technologies[i].traits
    if i and group.levels[i].kind is LinkKind.PCIE:
        return np.ones_like(group.degree)
    usual = np.full_like(
        group.degree, traits.exchange_efficiency if op == "all_to_all" else traits.efficiency
    )
    if traits.partial_efficiency is None or i == 0 or group.levels[i].kind is not LinkKind.MESH:
        return usual
    members = group.inner[i] * group.factors[i]
    return np.where(members < group.levels[i].size, np.minimum(usual, traits.partial_efficiency), usual)


def level_part(op: str, group: Group, i: int) -> Part:
    """Return the cost of `op` inside level `i`: measured curve where one exists, traits otherwise."""
    level, tech = group.levels[i], group.technologies[i]
    traits, n, rate = tech.traits, group.factors[i], group.rate(i)
    steps = np.maximum((n - 1) * (2 if op.startswith("all_reduce") else 1), 1)
    curve = tech.curves.get(op)
    if curve is None or (i and level.kind is LinkKind.PCIE):
        hop = traits.hop_s if traits.hop_s is not None else level.latency_s
        busbw = _efficiency(op, group, i) * rate
        alpha, extra = traits.launch_s + steps * hop, steps * traits.bulk_hop_s
        if op == "all_to_all":
            alpha, extra = traits.launch_s + hop + (n - 1) * traits.peer_s, np.full_like(n, traits.bulk_hop_s)
        half = BULK_SHARE * extra * busbw / np.maximum(traffic_factor(op, n), 0.5)
        sigma = np.full_like(n, traits.log_sigma)
    else:
        scale = rate / tech.reference_bytes_per_s
        alpha, extra, half, busbw, sigma = curve.at(n)
        half, busbw = half * scale, busbw * scale
    if level.kind is LinkKind.PCIE and level.pair_bytes_per_s:
        busbw = np.minimum(busbw, level.bytes_per_s)
    busbw = busbw / group.slowdown[i]
    step = np.maximum(alpha - traits.launch_s, 0.0) / steps
    return Part(alpha, extra, np.maximum(half, 1.0), busbw, step, extra / steps, sigma)
