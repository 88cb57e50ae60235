"""Levels derived from graphs, against the published description of each machine."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.catalog import find_cluster, find_node
from hardware.levels import Level, LinkKind, group_factors, node_levels
from hardware.topology import Link, Part, PartKind, Topology

GB = 1e9


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dgx-1v", [(8, 150, LinkKind.MESH, "nvlink2")]),
        ("dgx-a100", [(8, 300, LinkKind.SWITCH, "nvlink3")]),
        ("dgx-h100", [(8, 450, LinkKind.SWITCH, "nvlink4")]),
        ("hgx-b200", [(8, 900, LinkKind.SWITCH, "nvlink5")]),
        ("gb200-nvl72", [(72, 900, LinkKind.SWITCH, "nvlink5")]),
        ("mi300x", [(8, 448, LinkKind.MESH, "xgmi")]),
        (
            "frontier",
            [(2, 200, LinkKind.MESH, "infinity-fabric"), (8, 125, LinkKind.MESH, "infinity-fabric")],
        ),
        ("atlas-910a", [(4, 90, LinkKind.MESH, "hccs"), (8, 6, LinkKind.PCIE, "cpu-link")]),
        ("atlas-910b", [(8, 196, LinkKind.MESH, "hccs")]),
        ("cloudmatrix384", [(2, 224, LinkKind.MESH, "sio"), (16, 196, LinkKind.SWITCH, "ub")]),
        ("dgx-2", [(16, 150, LinkKind.SWITCH, "nvlink2")]),
        (
            "atlas-350",
            [
                (4, 159, LinkKind.MESH, "ub"),
                (8, 8, LinkKind.PCIE, "pcie5"),
                (16, 3, LinkKind.PCIE, "cpu-link"),
            ],
        ),
        ("perlmutter", [(4, 300, LinkKind.MESH, "nvlink3")]),
        ("gaudi2", [(8, 262.5, LinkKind.MESH, "roce")]),
    ],
)
def test_node_levels(name: str, expected: list[tuple[int, float, LinkKind, str]]) -> None:
    levels = find_node(name).levels
    assert [(v.size, pytest.approx(v.bytes_per_s / GB), v.kind, v.technology) for v in levels] == expected


def test_switches_that_add_are_marked() -> None:
    assert find_node("dgx-h100").levels[0].in_network_reduce
    assert find_node("gb200-nvl72").levels[0].in_network_reduce
    assert not find_node("dgx-a100").levels[0].in_network_reduce


def test_a_mesh_says_what_a_pair_gets() -> None:
    assert find_node("mi300x").levels[0].pair_bytes_per_s == 64 * GB
    assert find_node("atlas-910b").levels[0].pair_bytes_per_s == 28 * GB
    assert find_node("dgx-h100").levels[0].pair_bytes_per_s is None


def test_eight_cards_on_pcie_are_no_all_to_all_of_32_gigabytes() -> None:
    pair, socket, box = find_node("aws-g6e").levels
    assert (pair.size, socket.size, box.size) == (2, 4, 8)
    assert pair.bytes_per_s == 32 * GB
    assert socket.bytes_per_s == pytest.approx(2.5 * GB), (
        "two flows of a ring of four leave each pair: 5 GB/s"
    )
    assert box.bytes_per_s * 4 < 2 * GB, "measured 8-GPU rings reach 1.2 to 2.0 GB/s"
    assert box.kind is LinkKind.PCIE


@pytest.mark.parametrize(
    ("name", "num_nodes", "expected"),
    [
        ("dgx-h100", 512, [(8, 450), (4096, 50)]),
        ("frontier", 384, [(2, 200), (8, 125), (1024, 12.5), (3072, 7.125)]),
        ("frontier", 64, [(2, 200), (8, 125), (512, 12.5)]),
        ("cloudmatrix384", 48, [(2, 224), (16, 196), (768, 196)]),
        ("cloudmatrix384", 96, [(2, 224), (16, 196), (768, 196), (1536, 25)]),
        ("aws-p4d", 4, [(8, 300), (32, 6.25)]),
        ("dgx-1v", 4, [(8, 150), (32, 6.25)]),
        ("gb300-nvl72", 4, [(72, 900), (288, 100)]),
        ("tpu-v5p", 2240, [(16, 180), (320, 180), (8960, 180)]),
        ("tpu-v5e", 64, [(16, 90), (256, 90), (512, 3.125)]),
    ],
)
def test_cluster_levels(name: str, num_nodes: int, expected: list[tuple[int, float]]) -> None:
    levels = find_cluster(name, num_nodes).levels
    assert [(level.size, pytest.approx(level.bytes_per_s / GB)) for level in levels] == expected


def test_naming_devices_differently_changes_no_level() -> None:
    def quad(order: list[int]) -> tuple[Level, ...]:
        parts = tuple(Part(id=f"d{i}", kind=PartKind.ACCELERATOR) for i in order)
        rates = {(0, 1): 100, (2, 3): 100, (0, 2): 25, (1, 3): 25}
        links = tuple(
            Link(a=f"d{a}", b=f"d{b}", technology="x", bytes_per_s=rate * GB, latency_s=1e-6)
            for (a, b), rate in rates.items()
        )
        return node_levels(Topology(parts=parts, links=links))

    assert quad([0, 1, 2, 3]) == quad([2, 3, 0, 1]) == quad([1, 0, 3, 2])
    assert [(v.size, v.bytes_per_s / GB) for v in quad([0, 1, 2, 3])] == [(2, 100), (4, 25)]
    assert [v.size for v in quad([0, 2, 1, 3])] == [4], "blocks must be neighbouring ranks"


@given(st.lists(st.sampled_from([25, 50, 100]), min_size=6, max_size=6), st.integers(2, 5))
def test_levels_scale_with_the_links_and_narrow_outwards(rates: list[int], factor: int) -> None:
    def levels(rated: list[int]) -> tuple[Level, ...]:
        parts = tuple(Part(id=f"d{i}", kind=PartKind.ACCELERATOR) for i in range(4))
        pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
        links = tuple(
            Link(a=f"d{a}", b=f"d{b}", technology="x", bytes_per_s=rate * GB, latency_s=1e-6)
            for (a, b), rate in zip(pairs, rated, strict=True)
        )
        return node_levels(Topology(parts=parts, links=links))

    before = levels(rates)
    scaled = levels([rate * factor for rate in rates])
    assert [v.size for v in scaled] == [v.size for v in before]
    assert [v.bytes_per_s for v in scaled] == pytest.approx([v.bytes_per_s * factor for v in before])
    assert all(outer.bytes_per_s <= inner.bytes_per_s for inner, outer in pairwise(before))
    assert before[-1].size == 4


def test_a_wider_outer_partition_is_no_hierarchy() -> None:
    """On Frontier pairs of packages are joined by fewer links than they have to the rest of the node."""
    assert [level.size for level in find_node("frontier").levels] == [2, 8]


@given(
    st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=4),
    st.lists(
        st.tuples(st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([1, 2, 4, 8, 16])),
        min_size=1,
        max_size=5,
    ),
)
def test_factors_multiply_to_the_degree(steps: list[int], groups: list[tuple[int, int]]) -> None:
    sizes = tuple(np.cumprod(steps).tolist())
    stride, degree = (np.array(column, dtype=np.int64) for column in zip(*groups, strict=True))
    assert (group_factors(sizes, stride, degree).prod(axis=0) == degree).all()


def test_a_group_of_stride_four_has_two_members_in_each_node() -> None:
    factors = group_factors((8, 64), np.array([4]), np.array([8]))
    assert factors.ravel().tolist() == [2, 4]


def test_a_level_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Level(name="x", size=0, bytes_per_s=1.0, latency_s=0.0, kind=LinkKind.SWITCH)
