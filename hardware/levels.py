"""Nested levels of a cluster: package, node, rack, fabric, world, inner to outer.

A rank order fills the inner level first, so a parallel group with stride `s` and degree `d` lies partly
inside each level. Levels are what the vectorised cost models read; the full graph is for placement.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hardware.flows import (
    capacity_graph,
    latencies_s,
    max_flow_bytes_per_s,
    widest_bytes_per_s,
)
from hardware.topology import Link, PartKind, Topology

__all__ = ["Level", "LinkKind", "group_factors", "node_levels", "nominal_bytes_per_s"]

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
    """Key of measured curves: nvlink2 to nvlink5, xgmi, infinity-fabric, hccs, sio, ub, ici, pcie3 to pcie6,
    upi, cpu-link, ib, ib-shared (two devices to an adapter), roce, efa, slingshot, ethernet."""
    in_network_reduce: bool = False
    """NVLS or SHARP: the switch adds."""
    pair_bytes_per_s: float | None = None
    """What one pair alone gets, where less than `bytes_per_s` (a mesh) or more."""
    attained_frac: float | None = None
    """Set where `bytes_per_s` is no rating but what single sends attained: its share of the rated speed."""

    def nominal_bytes_per_s(self, send_efficiency: float) -> float:
        """Return the rated speed of a link that would do what this one does, at most its own.

        Parameters
        ----------
        send_efficiency : share of rated speed that single sends usually attain on links of this technology.
        """
        return nominal_bytes_per_s(self.bytes_per_s, self.attained_frac, send_efficiency)

    def __post_init__(self) -> None:
        if self.size < 1 or self.bytes_per_s <= 0 or self.latency_s < 0:
            message = f"level {self.name}: size and bytes_per_s must be positive, latency_s not negative"
            raise ValueError(message)


def nominal_bytes_per_s(bytes_per_s: float, attained_frac: float | None, send_efficiency: float) -> float:
    """Return the rated speed behind what single sends attained, at most the link's own; see `Level`."""
    return bytes_per_s if attained_frac is None else bytes_per_s / max(send_efficiency, attained_frac)


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


Names = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tier:
    """A partition of the devices into blocks that links of at least some width join."""

    blocks: tuple[Names, ...]
    """Device ids, block by block, in rank order; blocks are equally long."""
    parts: tuple[frozenset[str], ...]
    """All parts that the same links join, switches too, block by block."""
    link: Link
    """The link that closed the partition: its technology names the level."""


def node_levels(topology: Topology) -> tuple[Level, ...]:
    """Return the levels of one node, inner to outer, derived from its graph.

    Links are added from the widest to the narrowest, scale-up fabric before host; whenever the devices fall
    into equal blocks of neighbouring ranks, that is a candidate level. Its bandwidth is the smallest flow
    from an inner block to the rest of the block around it, per device, limited by the pools that the inner
    blocks must share. An inner level narrower than the level around it is no hierarchy and is dropped.
    """
    tiers = _tiers(topology)
    levels = _rated(topology, tiers)
    while True:
        narrow = next((i for i, (a, b) in enumerate(pairwise(levels)) if b.bytes_per_s > a.bytes_per_s), None)
        if narrow is None:
            return levels
        del tiers[narrow]
        levels = _rated(topology, tiers)


def _tiers(topology: Topology) -> list[_Tier]:
    """Return the nested partitions into equal blocks of neighbouring ranks (Kruskal by width)."""
    widths = _widths(topology)
    order = sorted(topology.links, key=lambda link: (link.is_host, -widths[frozenset((link.a, link.b))]))
    parent = {part.id: part.id for part in topology.parts}
    tiers: list[_Tier] = []
    for index, link in enumerate(order):
        parent[_root(parent, link.a)] = _root(parent, link.b)
        following = order[index + 1] if index + 1 < len(order) else None
        if following is not None and _same_width(link, following, widths):
            continue
        tier = _equal_blocks(topology, parent, link)
        if tier is not None and (not tiers or len(tier.blocks[0]) > len(tiers[-1].blocks[0])):
            tiers.append(tier)
    return tiers


def _widths(topology: Topology) -> dict[frozenset[str], float]:
    """Return what each pair of linked parts can exchange: all its links, no more than their pool."""
    pools = {pool.name: pool.bytes_per_s for pool in topology.pools}
    widths: dict[frozenset[str], float] = {}
    for link in topology.links:
        pair = frozenset((link.a, link.b))
        limit = float("inf") if link.pool is None else pools[link.pool]
        widths[pair] = widths.get(pair, 0.0) + min(link.total_bytes_per_s, limit)
    return widths


def _same_width(a: Link, b: Link, widths: dict[frozenset[str], float]) -> bool:
    return a.is_host == b.is_host and widths[frozenset((a.a, a.b))] == widths[frozenset((b.a, b.b))]


def _root(parent: dict[str, str], vertex: str) -> str:
    while parent[vertex] != vertex:
        parent[vertex] = parent[parent[vertex]]
        vertex = parent[vertex]
    return vertex


def _equal_blocks(topology: Topology, parent: dict[str, str], link: Link) -> _Tier | None:
    """Return the tier if the joined devices are equally long runs of more than one neighbouring rank."""
    joined: dict[str, list[str]] = {}
    for device in topology.devices:
        joined.setdefault(_root(parent, device), []).append(device)
    blocks = tuple(tuple(block) for block in joined.values())
    runs = tuple(device for block in blocks for device in block) == topology.devices
    if not runs or len(blocks[0]) == 1 or len({len(block) for block in blocks}) > 1:
        return None
    parts: dict[str, set[str]] = {root: set() for root in joined}
    for part in topology.parts:
        root = _root(parent, part.id)
        if root in parts:
            parts[root].add(part.id)
    return _Tier(blocks=blocks, parts=tuple(frozenset(names) for names in parts.values()), link=link)


def _rated(topology: Topology, tiers: Sequence[_Tier]) -> tuple[Level, ...]:
    inner: tuple[Names, ...] = tuple((device,) for device in topology.devices)
    levels = []
    for tier in tiers:
        per_block = len(inner) // len(tier.blocks)
        views = [
            _BlockView(topology, tier, index, inner[index * per_block : (index + 1) * per_block])
            for index in range(len(tier.blocks))
        ]
        levels.append(_level(topology, tier, views))
        inner = tier.blocks
    return tuple(levels)


class _BlockView:
    """One block of a tier with the inner blocks that it joins: what they can exchange inside the block."""

    def __init__(self, topology: Topology, tier: _Tier, index: int, pieces: Sequence[Names]) -> None:
        self._topology = topology
        self._parts = tier.parts[index]
        self._host = tier.link.is_host
        self._pieces = pieces
        self.block = tier.blocks[index]
        self.graph = capacity_graph(topology, self.keeps)
        self.sides = [(piece, tuple(d for d in self.block if d not in piece)) for piece in self._unlike()]

    def keeps(self, link: Link) -> bool:
        """Return whether a link is of this block: both ends inside, and host links only in host tiers."""
        return link.a in self._parts and link.b in self._parts and (self._host or not link.is_host)

    def _unlike(self) -> list[Names]:
        """Return the inner blocks but for twins: single devices with the same links to the same parts."""
        found: dict[object, Names] = {}
        for piece in self._pieces:
            key = frozenset(self.graph[piece[0]].items()) if len(piece) == 1 else piece
            found.setdefault(key, piece)
        return list(found.values())

    def bytes_per_s(self) -> float:
        """Return what one device gets across the block when all inner blocks send at once."""
        flows = [max_flow_bytes_per_s(self.graph, a, b) / len(a) for a, b in self.sides]
        return min([*flows, *self._pool_shares()])

    def _pool_shares(self) -> list[float]:
        """Return, for each pool that inner blocks cannot avoid, its capacity per device of those blocks."""
        shares = []
        for pool in self._topology.pools:
            without = capacity_graph(self._topology, partial(self._keeps_outside, pool.name))
            sides = [(a, tuple(d for d in self.block if d not in a)) for a in self._pieces]
            bound = [a for a, b in sides if max_flow_bytes_per_s(without, a, b) == 0]
            if bound:
                shares.append(pool.bytes_per_s / sum(len(a) for a in bound))
        return shares

    def _keeps_outside(self, pool: str, link: Link) -> bool:
        return self.keeps(link) and link.pool != pool

    def pair_bytes_per_s(self) -> float:
        """Return the widest path of the pair of devices that has the narrowest."""
        widest = [(widest_bytes_per_s(self.graph, a[0]), b) for a, b in self.sides]
        return min(reached[device] for reached, b in widest for device in b)

    def latency_s(self) -> float:
        """Return the latency between the two devices of different inner blocks that are furthest apart."""
        reached = [(latencies_s(self._topology, a[0], self.keeps), b) for a, b in self.sides]
        return max(latencies[device][0] for latencies, b in reached for device in b)


def _level(topology: Topology, tier: _Tier, views: Sequence[_BlockView]) -> Level:
    kind = _kind(topology, tier)
    size = len(tier.blocks[0])
    links = [link for link in topology.links if views[0].keeps(link)]
    package = {topology.by_id[device].package for device in tier.blocks[0]}
    is_package = len(package) == 1 and None not in package
    return Level(
        name="node" if len(tier.blocks) == 1 else "package" if is_package else "island",
        size=size,
        bytes_per_s=min(view.bytes_per_s() for view in views),
        latency_s=max(view.latency_s() for view in views),
        kind=kind,
        technology=tier.link.technology,
        in_network_reduce=kind is LinkKind.SWITCH and any(link.in_network_reduce for link in links),
        pair_bytes_per_s=min(view.pair_bytes_per_s() for view in views) if kind is LinkKind.MESH else None,
    )


def _kind(topology: Topology, tier: _Tier) -> LinkKind:
    """Return how the devices of a tier reach each other: through the host, a switch, or directly."""
    if tier.link.is_host:
        return LinkKind.PCIE
    kinds = {topology.by_id[name].kind for name in tier.parts[0]}
    return LinkKind.SWITCH if PartKind.SWITCH in kinds else LinkKind.MESH
