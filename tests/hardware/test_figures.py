"""Rings, cuts, all-to-all and tilings against figures worked out by hand or enumeration."""

import json

import pytest

from hardware.catalog import find_cluster, find_node
from hardware.figures import (
    all_to_all_bytes_per_s,
    bisection_bytes_per_s,
    describe_cluster,
    pack_rings,
    tilings,
)
from hardware.topology import Duplex, Link, Part, PartKind, Topology

GB = 1e9


def test_the_frontier_node() -> None:
    topology = find_node("frontier").topology
    rings = pack_rings(topology)
    assert rings is not None
    assert (rings.num_cycles, rings.num_rings) == (5, pytest.approx(2))
    assert rings.bytes_per_s == pytest.approx(200 * GB)
    orders = {tuple(int(name[-1]) for name in ring) for ring in rings.rings}
    assert orders == {(0, 1, 3, 2, 4, 5, 7, 6), (0, 1, 5, 4, 2, 3, 7, 6)}
    assert bisection_bytes_per_s(topology) == pytest.approx(300 * GB)
    assert all_to_all_bytes_per_s(topology) == pytest.approx(7 * 18.75 * GB)
    by_cut = tilings(topology, 4)
    best = [tiling for tiling in by_cut if tiling.cut_bytes_per_s == by_cut[0].cut_bytes_per_s]
    best = [tiling for tiling in best if tiling.internal_links == (10, 10)]
    assert {tiling.tiles for tiling in best} == {((0, 1, 2, 3), (4, 5, 6, 7)), ((0, 1, 6, 7), (2, 3, 4, 5))}
    assert by_cut[0].cut_bytes_per_s == 100 * GB
    assert min(min(tiling.internal_links) for tiling in by_cut) in (1, 2), (
        "the worst four have one or two links"
    )
    assert tilings(topology, 2)[0].tiles == ((0, 1), (2, 3), (4, 5), (6, 7))


def test_the_hybrid_cube_mesh() -> None:
    topology = find_node("dgx-1v").topology
    rings = pack_rings(topology)
    assert rings is not None
    assert rings.num_rings == pytest.approx(3), "six links per device"
    assert rings.bytes_per_s == pytest.approx(150 * GB)
    assert all_to_all_bytes_per_s(topology) == pytest.approx(65.625 * GB)


def test_a_full_mesh_packs_into_rings_that_use_every_link() -> None:
    rings = pack_rings(find_node("mi300x").topology)
    assert rings is not None
    assert rings.num_cycles == 2520, "7! / 2"
    assert rings.bytes_per_s == pytest.approx(7 * 64 * GB)
    assert all_to_all_bytes_per_s(find_node("mi300x").topology) == pytest.approx(7 * 64 * GB)
    assert bisection_bytes_per_s(find_node("mi300x").topology) == pytest.approx(16 * 64 * GB)


@pytest.mark.parametrize(("name", "rate", "half"), [("dgx-h100", 450, 4), ("gb200-nvl72", 900, 36)])
def test_a_switch_gives_every_device_its_full_rate(name: str, rate: float, half: int) -> None:
    topology = find_node(name).topology
    assert pack_rings(topology) is None
    assert bisection_bytes_per_s(topology) == pytest.approx(half * rate * GB)
    assert all_to_all_bytes_per_s(topology) == pytest.approx(rate * GB)


def test_a_half_duplex_ring_has_half_the_bandwidth() -> None:
    def ring(duplex: Duplex) -> float:
        parts = tuple(Part(id=f"d{i}", kind=PartKind.ACCELERATOR) for i in range(4))
        links = tuple(
            Link(
                a=f"d{i}",
                b=f"d{(i + 1) % 4}",
                technology="x",
                bytes_per_s=10 * GB,
                latency_s=0.0,
                duplex=duplex,
            )
            for i in range(4)
        )
        rings = pack_rings(Topology(parts=parts, links=links))
        assert rings is not None
        return rings.bytes_per_s

    assert ring(Duplex.FULL) == pytest.approx(20 * GB)
    assert ring(Duplex.HALF) == pytest.approx(10 * GB)


def test_quads_over_pcie_are_bound_by_the_host() -> None:
    topology = find_node("atlas-910a").topology
    assert pack_rings(topology) is None
    assert bisection_bytes_per_s(topology) == pytest.approx(24 * GB)
    bound = all_to_all_bytes_per_s(topology)
    assert bound == pytest.approx(7 * 24 / 16 * GB), "16 ordered pairs cross each way"


def test_a_cluster_is_described_in_plain_values() -> None:
    plain = describe_cluster(find_cluster("frontier", 384))
    assert json.loads(json.dumps(plain)) == plain
    assert [level["size"] for level in plain["levels"]] == [2, 8, 1024, 3072]
    figures = plain["nodes"]["frontier"]
    assert figures["bisection_bytes_per_s"] == pytest.approx(300 * GB)
    assert figures["ring_bytes_per_s"] == pytest.approx(200 * GB)
    assert figures["all_to_all_bytes_per_s_per_device"] == pytest.approx(131.25 * GB)
    assert len(figures["tilings"]["4"]) == 2
    assert describe_cluster(find_cluster("edge-box"))["nodes"] == {}
