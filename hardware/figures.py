"""What a node's graph can do as a whole: rings, cuts, all-to-all, tilings; and a cluster's description.

Figures are rated bounds, computed from the links alone. Linear programs are solved by SciPy's HiGHS, imported
where used.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from hardware.cluster import Cluster
from hardware.errors import SolverError
from hardware.flows import (
    CapacityGraph,
    capacity_graph,
    every_link,
    max_flow_bytes_per_s,
    scale_up_only,
    widest_bytes_per_s,
)
from hardware.levels import Level, node_levels
from hardware.topology import Duplex, Link, PartKind, Topology

__all__ = [
    "Rings",
    "Tiling",
    "all_to_all_bytes_per_s",
    "bisection_bytes_per_s",
    "describe_cluster",
    "pack_rings",
    "tilings",
]

MAX_RING_DEVICES = 9
"""Hamiltonian cycles are enumerated: 20,160 in a full mesh of 9."""
MAX_CUT_PIECES = 12
MAX_ALL_TO_ALL_DEVICES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Rings:
    """A best packing of rings through all devices over their direct links."""

    num_cycles: int
    """Hamiltonian cycles that exist."""
    num_rings: float
    """Rings that fit side by side, each taking one link of every hop; fractional rings count."""
    bytes_per_s: float
    """Bus bandwidth of all rings, both ways round: the most a ring collective can reach."""
    rings: tuple[tuple[str, ...], ...]
    """The rings in use, as device orders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """A partition of the node into equal tiles."""

    tiles: tuple[tuple[int, ...], ...]
    """Device indices, tile by tile."""
    internal_links: tuple[int, ...]
    """Links inside each tile."""
    cut_bytes_per_s: float
    """Narrowest cut through any tile, one way."""


def used_links(topology: Topology) -> Callable[[Link], bool]:
    """Return the filter of links that collectives use: scale-up only, where it joins all devices."""
    reached = widest_bytes_per_s(capacity_graph(topology, scale_up_only), topology.devices[0])
    return scale_up_only if set(topology.devices) <= set(reached) else every_link


def pack_rings(topology: Topology) -> Rings | None:
    """Return the best fractional packing of Hamiltonian cycles over direct links.

    Maximise the sum of x_h over cycles h, subject to the sum of x_h over the cycles through an edge being at
    most its capacity. None if devices meet in switches or are too many to enumerate.
    """
    devices = topology.devices
    keep = used_links(topology)
    links = [link for link in topology.links if keep(link)]
    edges = {frozenset((link.a, link.b)): link for link in links if {link.a, link.b} <= set(devices)}
    if not 3 <= len(devices) <= MAX_RING_DEVICES or _meets_switch(topology, links):
        return None
    cycles = list(_cycles(devices, set(edges)))
    if not cycles:
        return None
    graph = capacity_graph(topology, keep)
    order = list(edges)
    limits = [_one_way(edges[edge], graph) for edge in order]
    rows = [[edge in _hops(cycle) for cycle in cycles] for edge in order]
    shares = _maximise([1.0] * len(cycles), rows, limits)
    unit = min(link.bytes_per_s for link in edges.values())
    total = float(sum(shares))
    used = tuple(cycle for cycle, share in zip(cycles, shares, strict=True) if share > 1e-6 * total)
    return Rings(num_cycles=len(cycles), num_rings=total / unit, bytes_per_s=2 * total, rings=used)


def _meets_switch(topology: Topology, links: Sequence[Link]) -> bool:
    devices = set(topology.devices)
    ends = {end for link in links if {link.a, link.b} & devices for end in (link.a, link.b)} - devices
    return any(topology.by_id[end].kind is PartKind.SWITCH for end in ends)


def _one_way(link: Link, graph: CapacityGraph) -> float:
    """Return what rings may take one way round; a half-duplex link carries both ways in its one rate."""
    capacity = graph[link.a][link.b]
    return capacity / 2 if link.duplex is Duplex.HALF else capacity


def _cycles(devices: Sequence[str], edges: set[frozenset[str]]) -> Iterator[tuple[str, ...]]:
    """Yield every Hamiltonian cycle once, from the first device, in one direction."""
    first = devices[0]

    def grow(path: list[str]) -> Iterator[tuple[str, ...]]:
        if len(path) == len(devices):
            if frozenset((path[-1], first)) in edges and path[1] < path[-1]:
                yield tuple(path)
            return
        for device in devices:
            if device not in path and frozenset((path[-1], device)) in edges:
                yield from grow([*path, device])

    yield from grow([first])


def _hops(cycle: tuple[str, ...]) -> set[frozenset[str]]:
    return {frozenset(pair) for pair in zip(cycle, (*cycle[1:], cycle[0]), strict=True)}


def _maximise(gain: Sequence[float], rows: Sequence[Sequence[bool]], limits: Sequence[float]) -> list[float]:
    """Return x >= 0 with the greatest gain under rows x <= limits."""
    scale = max(limits)
    loss = [-value for value in gain]
    x, _ = _solve("ring packing", c=loss, A_ub=np.array(rows, dtype=float), b_ub=np.array(limits) / scale)
    return [value * scale for value in x]


def _solve(what: str, **problem: Any) -> tuple[list[float], float]:
    """Return the solution and objective of a linear program in `scipy.optimize.linprog` form."""
    from scipy.optimize import linprog

    answer: Any = linprog(method="highs", **problem)
    if answer.status != 0:
        message = f"{what}: the linear program gave no answer ({answer.message})"
        raise SolverError(message)
    return [float(value) for value in answer.x], float(answer.fun)


def bisection_bytes_per_s(topology: Topology) -> float | None:
    """Return the least flow, one way, from one half of the devices to the other.

    The pieces that are halved are the blocks inside the outermost level (devices, where there is one level);
    more than 12 pieces are halved once, which is exact where they all hang on one switch, and None elsewhere.
    """
    devices = topology.devices
    levels = node_levels(topology)
    inner = levels[-2].size if len(levels) > 1 and levels[-2].size > 1 else 1
    if len(devices) // inner % 2:
        inner = 1
    if len(devices) <= MAX_CUT_PIECES:
        inner = 1
    pieces = [devices[start : start + inner] for start in range(0, len(devices), inner)]
    if len(pieces) % 2:
        return None
    graph = capacity_graph(topology, used_links(topology))
    half = len(pieces) // 2
    if len(pieces) > MAX_CUT_PIECES:
        middle = len(devices) // 2
        return (
            max_flow_bytes_per_s(graph, devices[:middle], devices[middle:])
            if _is_star(graph, devices)
            else None
        )
    cuts = []
    for chosen in combinations(range(1, len(pieces)), half - 1):
        side = {0, *chosen}
        left = [device for i in side for device in pieces[i]]
        right = [device for i in range(len(pieces)) if i not in side for device in pieces[i]]
        cuts.append(max_flow_bytes_per_s(graph, left, right))
    return min(cuts)


def _is_star(graph: CapacityGraph, devices: Sequence[str]) -> bool:
    """Return whether all devices hang on the same switches by the same links."""
    return len({frozenset(graph[device].items()) for device in devices}) == 1


def all_to_all_bytes_per_s(topology: Topology) -> float | None:
    """Return the most one device can send in a uniform all-to-all, all pairs at once, one way.

    The maximum concurrent flow: every ordered pair ships t; traffic of one source is one commodity.
    Maximise t subject to conservation at every part and to link and pool capacities. None above 16 devices
    that do not all hang on the same switches.
    """
    devices = topology.devices
    if len(devices) == 1:
        return None
    keep = used_links(topology)
    graph = capacity_graph(topology, keep)
    if len(devices) > MAX_ALL_TO_ALL_DEVICES:
        return sum(graph[devices[0]].values()) if _is_star(graph, devices) else None
    arcs = [(a, b, capacity) for a, edges in graph.items() for b, capacity in edges.items()]
    return _concurrent_flow(devices, list(graph), arcs) * (len(devices) - 1)


def _concurrent_flow(
    devices: Sequence[str], vertices: Sequence[str], arcs: Sequence[tuple[str, str, float]]
) -> float:
    """Return the flow t that every ordered pair of devices can ship at once."""
    from scipy.sparse import coo_array

    row_of = {vertex: row for row, vertex in enumerate(vertices)}
    num_arcs, num_vertices = len(arcs), len(vertices)
    scale = max(capacity for _, _, capacity in arcs)
    rows, columns, values = [], [], []
    last = len(devices) * num_arcs
    for k, source in enumerate(devices):
        for index, (a, b, _) in enumerate(arcs):
            rows += [k * num_vertices + row_of[a], k * num_vertices + row_of[b]]
            columns += [k * num_arcs + index] * 2
            values += [1.0, -1.0]
        for device in devices:
            rows.append(k * num_vertices + row_of[device])
            columns.append(last)
            values.append(-(len(devices) - 1.0) if device == source else 1.0)
    balance = coo_array((values, (rows, columns)), shape=(len(devices) * num_vertices, last + 1)).tocsr()
    on_arc = [index for _ in devices for index in range(num_arcs)]
    load = coo_array((np.ones(last), (on_arc, np.arange(last))), shape=(num_arcs, last + 1)).tocsr()
    gain = np.zeros(last + 1)
    gain[last] = -1.0
    limits = np.array([capacity for _, _, capacity in arcs]) / scale
    _, loss = _solve(
        "all-to-all bound", c=gain, A_ub=load, b_ub=limits, A_eq=balance, b_eq=np.zeros(balance.shape[0])
    )
    return -loss * scale


def tilings(topology: Topology, size: int) -> tuple[Tiling, ...]:
    """Return the partitions of up to 8 devices into tiles of `size`, the best first.

    Better means a wider narrowest cut inside the tiles, then more links inside them.
    """
    devices = topology.devices
    if len(devices) > 8 or len(devices) % size:
        return ()
    keep = used_links(topology)
    links = [link for link in topology.links if keep(link)]
    rated: dict[tuple[int, ...], tuple[int, float]] = {}
    found = []
    for tiles in _partitions(tuple(range(len(devices))), size):
        for tile in tiles:
            if tile not in rated:
                names = {devices[i] for i in tile}
                inside = sum(link.count for link in links if {link.a, link.b} <= names)
                rated[tile] = (inside, _narrowest_cut(topology, keep, [devices[i] for i in tile]))
        cut = min(rated[tile][1] for tile in tiles)
        found.append(
            Tiling(tiles=tiles, internal_links=tuple(rated[t][0] for t in tiles), cut_bytes_per_s=cut)
        )
    return tuple(sorted(found, key=lambda t: (-t.cut_bytes_per_s, -sum(t.internal_links), t.tiles)))


def _partitions(left: tuple[int, ...], size: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    if not left:
        yield ()
        return
    for rest in combinations(left[1:], size - 1):
        tile = (left[0], *rest)
        for more in _partitions(tuple(i for i in left if i not in tile), size):
            yield (tile, *more)


def _narrowest_cut(topology: Topology, keep: Callable[[Link], bool], tile: list[str]) -> float:
    """Return the least flow between two devices of the tile over its own links and the switches."""
    others = set(topology.devices) - set(tile)

    def inside(link: Link) -> bool:
        return keep(link) and not {link.a, link.b} & others

    graph = capacity_graph(topology, inside)
    return min(
        (max_flow_bytes_per_s(graph, [a], [b]) for a, b in combinations(tile, 2)), default=float("inf")
    )


def describe_cluster(cluster: Cluster) -> dict[str, Any]:
    """Return a cluster as plain values: its groups, its levels, and the figures of every kind of node."""
    nodes = {group.node.name: group.node for group in cluster.groups}
    return {
        "name": cluster.name,
        "num_devices": cluster.num_devices,
        "num_nodes": cluster.num_nodes,
        "groups": [
            {
                "name": group.name,
                "node": group.node.name,
                "device": group.node.device.name,
                "count": group.count,
                "devices_per_node": group.node.num_devices,
                "fabrics": list(group.fabrics),
            }
            for group in cluster.groups
        ],
        "levels": [_plain_level(level) for level in cluster.levels],
        "nodes": {name: node_figures(node.topology) for name, node in nodes.items() if node.num_devices > 1},
    }


def node_figures(topology: Topology) -> dict[str, Any]:
    """Return the ring, cut, all-to-all and tiling figures of one node as plain values."""
    rings = pack_rings(topology)
    levels = node_levels(topology)
    inner = [1, *(level.size for level in levels)]
    bound = min(level.bytes_per_s * size for level, size in zip(levels, inner, strict=False))
    best = {size: tilings(topology, size) for size in (2, 4) if size < len(topology.devices)}
    return {
        "num_rings": None if rings is None else rings.num_rings,
        "ring_bytes_per_s": bound if rings is None else rings.bytes_per_s,
        "rings": [] if rings is None else [list(ring) for ring in rings.rings],
        "bisection_bytes_per_s": bisection_bytes_per_s(topology),
        "all_to_all_bytes_per_s_per_device": all_to_all_bytes_per_s(topology),
        "tilings": {
            str(size): [
                {
                    "tiles": [list(tile) for tile in tiling.tiles],
                    "internal_links": list(tiling.internal_links),
                    "cut_bytes_per_s": tiling.cut_bytes_per_s,
                }
                for tiling in found
                if tiling.cut_bytes_per_s == found[0].cut_bytes_per_s
                and sum(tiling.internal_links) == sum(found[0].internal_links)
            ]
            for size, found in best.items()
            if found
        },
    }


def _plain_level(level: Level) -> dict[str, Any]:
    return {
        "name": level.name,
        "size": level.size,
        "bytes_per_s": level.bytes_per_s,
        "pair_bytes_per_s": level.pair_bytes_per_s,
        "latency_s": level.latency_s,
        "kind": level.kind.value,
        "technology": level.technology,
        "in_network_reduce": level.in_network_reduce,
    }
