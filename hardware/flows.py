"""Path and flow algorithms on small capacity graphs, without networkx: start-up cannot pay its import.

A capacity graph is ``{part: {neighbour: bytes_per_s}}``, both directions written. Parallel links add up. A
pool becomes a vertex pair of its capacity: exact where its links share an end, an upper bound otherwise.
"""

from collections import deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush

from hardware.topology import Link, Topology

__all__ = [
    "CapacityGraph",
    "capacity_graph",
    "latencies_s",
    "max_flow_bytes_per_s",
    "scale_up_only",
    "widest_bytes_per_s",
]

CapacityGraph = dict[str, dict[str, float]]


def scale_up_only(link: Link) -> bool:
    """Return whether the link belongs to the scale-up fabric rather than to the host."""
    return not link.is_host


def every_link(link: Link) -> bool:
    """Return True: the filter that keeps every link."""
    return link is not None


def capacity_graph(topology: Topology, keep: Callable[[Link], bool] = every_link) -> CapacityGraph:
    """Return the capacity graph of the links that `keep` accepts; every part is a vertex."""
    graph: CapacityGraph = {part.id: {} for part in topology.parts}
    for pool in topology.pools:
        graph[_entry(pool.name)] = {_exit(pool.name): pool.bytes_per_s}
        graph[_exit(pool.name)] = {}
    for link in topology.links:
        if not keep(link):
            continue
        for a, b in ((link.a, link.b), (link.b, link.a)):
            if link.pool is None:
                _add(graph, a, b, link.total_bytes_per_s)
            else:
                _add(graph, a, _entry(link.pool), link.total_bytes_per_s)
                _add(graph, _exit(link.pool), b, link.total_bytes_per_s)
    return graph


def _entry(pool: str) -> str:
    return f"pool:{pool}:in"


def _exit(pool: str) -> str:
    return f"pool:{pool}:out"


def _add(graph: CapacityGraph, a: str, b: str, bytes_per_s: float) -> None:
    graph[a][b] = graph[a].get(b, 0.0) + bytes_per_s


def max_flow_bytes_per_s(graph: CapacityGraph, sources: Iterable[str], sinks: Iterable[str]) -> float:
    """Return the most that `sources` together can send to `sinks` at once (Dinic's algorithm)."""
    origins, targets = list(sources), set(sinks)
    residual = {vertex: dict(edges) for vertex, edges in graph.items()}
    total = 0.0
    while True:
        depth = _depths(residual, origins)
        if not any(target in depth for target in targets):
            return total
        pushed = [_augment(residual, depth, origin, targets, float("inf")) for origin in origins]
        total += sum(pushed)


def _depths(residual: CapacityGraph, origins: list[str]) -> dict[str, int]:
    depth = dict.fromkeys(origins, 0)
    frontier = deque(origins)
    while frontier:
        vertex = frontier.popleft()
        for neighbour, left in residual[vertex].items():
            if left > 0 and neighbour not in depth:
                depth[neighbour] = depth[vertex] + 1
                frontier.append(neighbour)
    return depth


def _augment(
    residual: CapacityGraph, depth: dict[str, int], vertex: str, targets: set[str], limit: float
) -> float:
    """Push as much as `limit` from `vertex` towards the targets along increasing depth."""
    if vertex in targets:
        return limit
    sent = 0.0
    edges = residual[vertex]
    for neighbour in list(edges):
        left = edges[neighbour]
        if left <= 0 or depth.get(neighbour) != depth[vertex] + 1:
            continue
        pushed = _augment(residual, depth, neighbour, targets, min(left, limit - sent))
        if pushed > 0:
            edges[neighbour] -= pushed
            _add(residual, neighbour, vertex, pushed)
            sent += pushed
            if sent >= limit:
                return sent
    if sent == 0:
        depth[vertex] = -1
    return sent


def widest_bytes_per_s(graph: CapacityGraph, source: str) -> dict[str, float]:
    """Return the narrowest link of the widest path from `source` to every part it reaches."""
    best = {source: float("inf")}
    heap = [(-float("inf"), source)]
    while heap:
        width, vertex = heappop(heap)
        if -width < best[vertex]:
            continue
        for neighbour, capacity in graph[vertex].items():
            reached = min(-width, capacity)
            if reached > best.get(neighbour, 0.0):
                best[neighbour] = reached
                heappush(heap, (-reached, neighbour))
    return best


def latencies_s(
    topology: Topology, source: str, keep: Callable[[Link], bool] = every_link
) -> dict[str, tuple[float, int]]:
    """Return the least latency, and the links on that path, from `source` to every part it reaches."""
    edges: dict[str, list[tuple[str, float]]] = {part.id: [] for part in topology.parts}
    for link in topology.links:
        if keep(link):
            edges[link.a].append((link.b, link.latency_s))
            edges[link.b].append((link.a, link.latency_s))
    best: dict[str, tuple[float, int]] = {source: (0.0, 0)}
    heap = [(0.0, 0, source)]
    while heap:
        latency, hops, vertex = heappop(heap)
        if (latency, hops) > best[vertex]:
            continue
        for neighbour, more in edges[vertex]:
            reached = (latency + more, hops + 1)
            if neighbour not in best or reached < best[neighbour]:
                best[neighbour] = reached
                heappush(heap, (*reached, neighbour))
    return best
