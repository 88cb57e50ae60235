"""Flows and paths against networkx on random machines."""

import itertools

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.flows import capacity_graph, latencies_s, max_flow_bytes_per_s, widest_bytes_per_s
from hardware.topology import Link, Part, PartKind, Pool, Topology

GB = 1e9


def _machine(edges: list[tuple[int, int, int]], size: int) -> Topology:
    """Return a chain of `size` accelerators with extra links of the given gigabytes per second."""
    parts = tuple(Part(id=f"d{i}", kind=PartKind.ACCELERATOR) for i in range(size))
    chain = [(i, i + 1, 1) for i in range(size - 1)]
    links = tuple(
        Link(a=f"d{a}", b=f"d{b}", technology="nvlink3", bytes_per_s=rate * GB, latency_s=1e-6 * rate)
        for a, b, rate in chain + edges
        if a != b
    )
    return Topology(parts=parts, links=links)


machines = st.integers(2, 7).flatmap(
    lambda size: st.lists(
        st.tuples(st.integers(0, size - 1), st.integers(0, size - 1), st.integers(1, 9)), max_size=12
    ).map(lambda edges: _machine(edges, size))
)


@settings(deadline=None, max_examples=60)
@given(machines)
def test_flow_width_and_latency_agree_with_networkx(topology: Topology) -> None:
    graph = capacity_graph(topology)
    flat = nx.DiGraph()
    for a, edges in graph.items():
        for b, capacity in edges.items():
            flat.add_edge(a, b, capacity=capacity)
    first, last = topology.devices[0], topology.devices[-1]
    flow = max_flow_bytes_per_s(graph, [first], [last])
    assert flow == pytest.approx(nx.maximum_flow_value(flat, first, last))
    width = widest_bytes_per_s(graph, first)[last]
    tree = nx.maximum_spanning_tree(flat.to_undirected(), weight="capacity")
    path = nx.shortest_path(tree, first, last)
    assert width == min(tree[a][b]["capacity"] for a, b in itertools.pairwise(path))
    assert width <= flow
    latency = nx.shortest_path_length(topology.graph, first, last, weight="latency")
    assert latencies_s(topology, first)[last][0] == pytest.approx(latency)


def test_links_of_a_pool_share_its_capacity() -> None:
    parts = tuple(Part(id=f"d{i}", kind=PartKind.ACCELERATOR) for i in range(4))
    hub = Part(id="cpu", kind=PartKind.CPU)
    links = tuple(
        Link(a=part.id, b="cpu", technology="pcie4", bytes_per_s=32 * GB, latency_s=0.0, pool="host")
        for part in parts
    )
    graph = capacity_graph(
        Topology(parts=(*parts, hub), links=links, pools=(Pool(name="host", bytes_per_s=20 * GB),))
    )
    assert max_flow_bytes_per_s(graph, ["d0", "d1"], ["d2", "d3"]) == 20 * GB
