from pathlib import Path

import numpy as np
import pytest

from hardware.catalog import find_cluster
from hardware.cluster import Cluster
from hardware.errors import OutOfDomainError, SpecError
from hardware.measured_links import links_from_matrices


def loaded(tmp_path: Path, groups: str, rates: np.ndarray) -> Cluster:
    """Load a cluster file with these groups and measured rates."""
    rows = [" ".join("-" if i == j else f"{v:g}" for j, v in enumerate(row)) for i, row in enumerate(rates)]
    hosts = ", ".join(f"h{i}" for i in range(len(rates)))
    text = "\n".join(f"    - {row!r}" for row in rows)
    path = tmp_path / "measured.yaml"
    path.write_text(
        f"name: measured\n{groups}\nmeasured_links:\n  hosts: [{hosts}]\n  snapshots:\n   -\n{text}\n"
    )
    return find_cluster(str(path))


def test_a_fabric_is_as_fast_as_the_slowest_link_of_the_ring_on_every_port(tmp_path: Path) -> None:
    """Eight ports of a DGX A100; a slow link that no ring in host order takes changes nothing."""
    rates = np.full((4, 4), 20e9)
    rates[2, 3] = 12e9
    rates[0, 2] = 1e9
    cluster = loaded(tmp_path, "groups: [{node: dgx-a100, count: 4}]", rates)
    assert cluster.node_bytes_per_s(0, cluster.fabrics[0].name) == pytest.approx(8 * 12e9)
    assert cluster.levels[-1].bytes_per_s == pytest.approx(12e9)


def test_no_measurement_makes_a_fabric_faster_than_its_data_sheet(tmp_path: Path) -> None:
    cluster = loaded(tmp_path, "groups: [{node: dgx-a100, count: 4}]", np.full((4, 4), 300e9))
    rated = find_cluster("dgx-a100", 4)
    assert [level.bytes_per_s for level in cluster.levels] == [level.bytes_per_s for level in rated.levels]


def test_each_island_has_the_rate_of_its_own_links(tmp_path: Path) -> None:
    """InfiniBand between hosts 0 and 1, RoCE between 2 and 3, Ethernet from one island to the other."""
    rates = np.full((4, 4), 2e9)
    rates[:2, :2], rates[2:, 2:] = 10e9, 5e9
    groups = """groups:
  - {name: a, node: dgx-a100, count: 2, fabrics: [ib, ethernet]}
  - {name: b, node: dgx-a100, count: 2, fabrics: [roce, ethernet]}
fabrics:
  - {name: ib, kind: rail, technology: ib, latency_s: 4 us}
  - {name: roce, kind: rail, technology: roce, node_bytes_per_s: 50 GB/s, latency_s: 8 us}
  - {name: ethernet, kind: clos, technology: ethernet, node_bytes_per_s: 3.125 GB/s, latency_s: 40 us}"""
    cluster = loaded(tmp_path, groups, rates)
    found = {fabric.name: fabric.node_bytes_per_s for fabric in cluster.fabrics}
    assert found == pytest.approx({"ib": 8 * 10e9, "roce": 5e9, "ethernet": 2e9})


def test_fewer_nodes_keep_the_links_of_the_first_hosts_and_more_are_refused(tmp_path: Path) -> None:
    rates = np.full((4, 4), 20e9)
    rates[0, 1] = 15e9
    cluster = loaded(tmp_path, "groups: [{node: dgx-a100, count: 4}]", rates)
    links = cluster.with_nodes(2).measured_links
    assert links is not None
    assert links.hosts == ("h0", "h1")
    assert links.bytes_per_s[0, 0, 1] == pytest.approx(15e9)
    assert cluster.with_nodes(1).measured_links is None
    with pytest.raises(OutOfDomainError, match="the links of 4 hosts were measured, 5 nodes have 5"):
        cluster.with_nodes(5)


@pytest.mark.parametrize("rate", [12e3, 3e12, 0.0, -1e9, np.nan, np.inf])
def test_a_rate_that_no_link_has_is_refused(rate: float) -> None:
    """Twelve thousand bytes a second is twelve GB/s in MB/s."""
    rates = np.full((2, 2), 10e9)
    rates[0, 1] = rate
    with pytest.raises(SpecError, match=r"h0 to h1 is .*; rates must be positive, B/s from 100000 to 2e\+12"):
        links_from_matrices("file", ("h0", "h1"), [rates])


def test_levels_say_which_share_of_the_rated_speed_was_attained(tmp_path: Path) -> None:
    cluster = loaded(tmp_path, "groups: [{node: dgx-a100, count: 4}]", np.full((4, 4), 20e9))
    assert cluster.levels[-1].attained_frac == pytest.approx(20 / 25)
    assert find_cluster("dgx-a100", 4).levels[-1].attained_frac is None


def test_the_nominal_speed_of_a_measured_link_is_at_most_its_own(tmp_path: Path) -> None:
    """20 of 25 GB/s with sends that usually attain 0.95 are a link of 21.05; 24.5 are the link itself."""
    slow = loaded(tmp_path, "groups: [{node: dgx-a100, count: 4}]", np.full((4, 4), 20e9)).levels[-1]
    fast = loaded(tmp_path, "groups: [{node: dgx-a100, count: 4}]", np.full((4, 4), 24.5e9)).levels[-1]
    assert slow.nominal_bytes_per_s(0.95) == pytest.approx(20e9 / 0.95)
    assert fast.nominal_bytes_per_s(0.95) == pytest.approx(25e9)
