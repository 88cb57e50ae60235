"""Nested levels of a cluster: package, node, rack, fabric, world, inner to outer.

A rank order fills the inner level first, so a parallel group with stride `s` and degree `d` lies partly
inside each level. Levels are what the vectorised cost models read; the full graph is for placement.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from hardware.flows import (
    CapacityGraph,
    capacity_graph,
    every_link,
    latencies_s,
    max_flow_bytes_per_s,
    scale_up_only,
    widest_bytes_per_s,
)
from hardware.topology import Link, PartKind, Topology

__all__ = ["Level", "LinkKind", "group_factors", "node_levels"]

Ints = npt.NDArray[np.int64]


class LinkKind(StrEnum):
    """How the devices of one level reach each other."""

    SWITCH = "switch"
    """Any pair at full rate (NVSwitch, UB, a non-blocking Clos)."""
    MESH = "mesh"
    """Direct links, a pair gets a fraction of the device's total (xGMI, HCCS, hybrid cube mesh)."""
    PCIE = "pcie"
    """Through a host's PCIe roots and sockets; shared."""
    RAIL = "rail"
    """NIC of the same index first, then across rails inside the node."""
    FABRIC = "fabric"
    """NICs over a routed network (fat tree, dragonfly)."""
    TORUS = "torus"
    WAN = "wan"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """All devices that reach each other without leaving one border.

    Bandwidth is what one device gets across this level, one way, when all devices use it at once.
    """

    name: str
    """package, node, rack, pod, world."""
    size: int
    """Devices inside one instance of the level; a multiple of the next inner level's size."""
    bytes_per_s: float
    """Rated bandwidth per device, one way."""
    latency_s: float
    kind: LinkKind
    technology: str = ""
    """Key of measured curves: nvlink3, nvlink4, nvlink5, xgmi, infinity-fabric, hccs, ub, pcie4, ib, roce, efa, slingshot, ethernet."""
    in_network_reduce: bool = False
    """NVLS or SHARP: the switch adds."""
    pair_bytes_per_s: float | None = None
    """What one pair alone gets, where less than `bytes_per_s` (a mesh) or more."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.bytes_per_s <= 0 or self.latency_s < 0:
            message = f"level {self.name}: size and bytes_per_s must be positive, latency_s not negative"
            raise ValueError(message)


def group_factors(level_sizes: tuple[int, ...], stride: Ints, degree: Ints) -> Ints:
    """Return how many ways a group fans out at each level; the product over levels is its degree.

    A group takes every `stride`-th rank, `degree` of them. With level sizes 8 and 64, a group of stride 4
    and degree 8 has two members in each of four nodes: factors 2 and 4.

    Parameters
    ----------
    level_sizes : devices inside each level, inner to outer, each a multiple of the one before.
    stride : distance between neighbouring members, in ranks. shape (rows,)
    degree : members of the group. shape (rows,)

    Returns
    -------
    Factors, shape (levels, rows). A group that does not tile a level counts as its ceiling there.
    """
    span = np.maximum(stride, 1)
    left = degree.astype(np.int64, copy=True)
    factors = np.ones((len(level_sizes), len(left)), dtype=np.int64)
    for i, size in enumerate(level_sizes):
        inside = np.clip(-(-size // span), 1, left) if i < len(level_sizes) - 1 else left
        steps = -(-left // inside)
        factors[i] = inside
        left = steps
        span = span * inside
    return factors


Blocks = tuple[tuple[int, ...], ...]
"""A partition of the devices: their indices, block by block, in rank order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tier:
    """A partition of the devices that are joined by links of at least some width."""

    blocks: Blocks
    link: Link
    """The link that closed the partition: its technology names the level."""


def node_levels(topology: Topology) -> tuple[Level, ...]:
    """Return the levels of one node, inner to outer, derived from its graph.

    Links are added from the widest to the narrowest, scale-up fabric before host; whenever the devices fall
    into equal blocks of neighbouring ranks, that is a candidate level. Its bandwidth is the smallest flow
    out of an inner block, per device of the block, limited by the pools that the blocks must share. An inner
    level that is narrower than the level around it is no hierarchy and is dropped.
    """
    tiers = _tiers(topology)
    levels = _rated(topology, tiers)
    while True:
        inverted = next(
            (i for i in range(len(levels) - 1) if levels[i + 1].bytes_per_s > levels[i].bytes_per_s), None
        )
        if inverted is None:
            return levels
        del tiers[inverted]
        levels = _rated(topology, tiers)


def _tiers(topology: Topology) -> list[_Tier]:
    """Return the nested partitions into equal blocks of neighbouring ranks (Kruskal by width)."""
    widths: dict[frozenset[str], float] = {}
    for link in topology.links:
        pair = frozenset((link.a, link.b))
        widths[pair] = widths.get(pair, 0.0) + link.total_bytes_per_s
    order = sorted(topology.links, key=lambda link: (link.is_host, -widths[frozenset((link.a, link.b))]))
    parent = {part.id: part.id for part in topology.parts}
    tiers: list[_Tier] = []
    for index, link in enumerate(order):
        parent[_root(parent, link.a)] = _root(parent, link.b)
        following = order[index + 1] if index + 1 < len(order) else None
        if following is not None and _same_width(link, following, widths):
            continue
        blocks = _equal_blocks([_root(parent, device) for device in topology.devices])
        if blocks is not None and (not tiers or len(blocks[0]) > len(tiers[-1].blocks[0])):
            tiers.append(_Tier(blocks=blocks, link=link))
    return tiers


def _same_width(a: Link, b: Link, widths: dict[frozenset[str], float]) -> bool:
    return a.is_host == b.is_host and widths[frozenset((a.a, a.b))] == widths[frozenset((b.a, b.b))]


def _root(parent: dict[str, str], vertex: str) -> str:
    while parent[vertex] != vertex:
        parent[vertex] = parent[parent[vertex]]
        vertex = parent[vertex]
    return vertex


def _equal_blocks(roots: Sequence[str]) -> Blocks | None:
    """Return the blocks of equal roots if they are equally long runs of more than one device."""
    size = roots.count(roots[0])
    if size == 1 or len(roots) % size:
        return None
    blocks = tuple(tuple(range(start, start + size)) for start in range(0, len(roots), size))
    runs = all(len({roots[i] for i in block}) == 1 for block in blocks)
    return blocks if runs and len(set(roots)) == len(blocks) else None


def _rated(topology: Topology, tiers: Sequence[_Tier]) -> tuple[Level, ...]:
    inner: Blocks = tuple((index,) for index in range(len(topology.devices)))
    levels = []
    for position, tier in enumerate(tiers):
        levels.append(_rate(topology, tier, inner, is_last=position == len(tiers) - 1))
        inner = tier.blocks
    return tuple(levels)


def _rate(topology: Topology, tier: _Tier, inner: Blocks, *, is_last: bool) -> Level:
    """Return the level of `tier`, whose inner blocks are `inner`."""
    keep = every_link if tier.link.is_host else scale_up_only
    graph = capacity_graph(topology, keep)
    names = topology.devices
    block = tier.blocks[0]
    parts = [tuple(names[i] for i in piece) for piece in inner if set(piece) <= set(block)]
    rest = [tuple(names[i] for i in block if names[i] not in part) for part in parts]
    bytes_per_s = min(max_flow_bytes_per_s(graph, a, b) / len(a) for a, b in zip(parts, rest, strict=True))
    bytes_per_s = min([bytes_per_s, *_pool_shares(topology, keep, parts, rest)])
    pair = min(widest_bytes_per_s(graph, a[0])[name] for a, b in zip(parts, rest, strict=True) for name in b)
    kind = _kind(topology, tier.link, parts)
    return Level(
        name="node" if is_last else "package" if _is_package(topology, block) else "island",
        size=len(block),
        bytes_per_s=bytes_per_s,
        latency_s=max(
            latencies_s(topology, a[0], keep)[name][0] for a, b in zip(parts, rest, strict=True) for name in b
        ),
        kind=kind,
        technology=tier.link.technology,
        in_network_reduce=any(link.in_network_reduce for link in topology.links if keep(link))
        and kind is LinkKind.SWITCH,
        pair_bytes_per_s=pair if kind is LinkKind.MESH else None,
    )


def _pool_shares(
    topology: Topology,
    keep: Callable[[Link], bool],
    parts: list[tuple[str, ...]],
    rest: list[tuple[str, ...]],
) -> list[float]:
    """Return, for each pool that blocks cannot avoid, its capacity per device of those blocks."""
    shares = []
    for pool in topology.pools:
        without: CapacityGraph = capacity_graph(
            topology, lambda link, name=pool.name: keep(link) and link.pool != name
        )
        bound = [a for a, b in zip(parts, rest, strict=True) if max_flow_bytes_per_s(without, a, b) == 0]
        if bound:
            shares.append(pool.bytes_per_s / sum(len(a) for a in bound))
    return shares


def _kind(topology: Topology, link: Link, parts: list[tuple[str, ...]]) -> LinkKind:
    if link.is_host:
        return LinkKind.PCIE
    devices = {name for part in parts for name in part}
    switched = any(
        not other.is_host
        and {other.a, other.b} & devices
        and PartKind.SWITCH in (topology.by_id[other.a].kind, topology.by_id[other.b].kind)
        for other in topology.links
        if other.technology == link.technology
    )
    return LinkKind.SWITCH if switched else LinkKind.MESH


def _is_package(topology: Topology, block: tuple[int, ...]) -> bool:
    packages = {topology.by_id[topology.devices[index]].package for index in block}
    return len(packages) == 1 and None not in packages
