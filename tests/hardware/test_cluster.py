from dataclasses import replace

import pytest

from hardware.catalog import find_cluster, find_device, find_node
from hardware.cluster import Cluster, NodeGroup
from hardware.errors import OutOfDomainError
from hardware.fabric import Fabric, FabricKind
from hardware.levels import LinkKind
from hardware.plain_cluster import homogeneous_cluster

GB = 1e9


def _two_level(**more: object) -> Cluster:
    given: dict[str, object] = {
        "device": find_device("a100"),
        "num_nodes": 4,
        "devices_per_node": 8,
        "intra_bytes_per_s": 300 * GB,
        "inter_bytes_per_s": 25 * GB,
    }
    return homogeneous_cluster(**(given | more))


def test_a_plain_cluster_has_the_levels_it_was_given() -> None:
    cluster = _two_level(intra_technology="nvlink3", inter_technology="ib", in_network_reduce=True)
    assert (cluster.num_devices, cluster.num_nodes, cluster.devices_per_node) == (32, 4, 8)
    assert cluster.device.name == "a100-80gb"
    inner, outer = cluster.levels
    assert (inner.size, inner.bytes_per_s, inner.technology, inner.in_network_reduce) == (
        8,
        300 * GB,
        "nvlink3",
        True,
    )
    assert (outer.size, outer.bytes_per_s, outer.technology, outer.kind) == (
        32,
        25 * GB,
        "ib",
        LinkKind.FABRIC,
    )


def test_a_mesh_shares_a_device_among_its_neighbours() -> None:
    assert _two_level(intra_kind=LinkKind.MESH).levels[0].pair_bytes_per_s == pytest.approx(300 * GB / 7)


@pytest.mark.parametrize(
    ("num_nodes", "devices_per_node", "sizes"), [(1, 1, [1]), (1, 8, [8]), (4, 1, [4]), (2, 2, [2, 4])]
)
def test_levels_without_extent_vanish(num_nodes: int, devices_per_node: int, sizes: list[int]) -> None:
    cluster = _two_level(num_nodes=num_nodes, devices_per_node=devices_per_node)
    assert [level.size for level in cluster.levels] == sizes


def test_equal_clusters_are_equal_and_hash_equally() -> None:
    first, second = _two_level(), _two_level()
    assert first == second
    assert hash(first) == hash(second)
    assert first != first.with_nodes(5)
    assert first.levels is first.levels, "derived once"


def test_with_nodes_counts_nodes_and_asks_the_fabric() -> None:
    assert find_cluster("frontier").with_nodes(384).num_devices == 3072
    with pytest.raises(OutOfDomainError, match="20000 nodes are more than the 9856"):
        find_cluster("frontier").with_nodes(20000)
    with pytest.raises(OutOfDomainError, match="at least one node"):
        find_cluster("dgx-h100").with_nodes(0)
    with pytest.raises(OutOfDomainError, match="has 2 groups"):
        find_cluster("holmes-hybrid").with_nodes(8)


def test_a_rack_may_be_used_in_part() -> None:
    node = find_node("gb200-nvl72").first_devices(64)
    assert (node.num_devices, node.num_hosts) == (64, 16)
    assert node.levels[0].size == 64
    assert node.levels[0].bytes_per_s == 900 * GB
    with pytest.raises(OutOfDomainError, match="has 72 devices, 73"):
        find_node("gb200-nvl72").first_devices(73)
    plain = _two_level().groups[0].node.first_devices(4)
    assert [level.size for level in plain.levels] == [4]


def test_the_way_to_the_nics_counts() -> None:
    frontier = find_node("frontier")
    assert frontier.nic_bytes_per_s("slingshot") == 100 * GB, "four NICs of 25 behind four of the dies"
    assert frontier.nic_bytes_per_s("ib") == 0
    assert find_node("aws-p4d").nic_bytes_per_s("efa") == 50 * GB


def test_groups_talk_over_the_best_fabric_that_both_have() -> None:
    cluster = find_cluster("holmes-hybrid")
    assert cluster.fabric_between(0, 0).name == "ib"
    assert cluster.fabric_between(1, 1).name == "roce"
    assert cluster.fabric_between(0, 1).name == "ethernet"
    assert cluster.bytes_per_s_between(0, 0) == 12.5 * GB
    assert cluster.bytes_per_s_between(1, 0) == pytest.approx(3.125 * GB / 8)


def test_levels_of_a_mix_are_conservative() -> None:
    cluster = find_cluster("holmes-hybrid")
    levels = [(level.size, level.bytes_per_s / GB, level.technology) for level in cluster.levels]
    assert levels == [(8, 300, "nvlink3"), (16, 6.25, "roce"), (32, pytest.approx(3.125 / 8), "ethernet")]
    fast, slow = cluster.group_cluster(0), cluster.group_cluster(1)
    assert [level.bytes_per_s / GB for level in fast.levels] == [300, 12.5]
    assert [level.bytes_per_s / GB for level in slow.levels] == [300, 6.25]
    assert fast.name == "holmes-hybrid:infiniband"


def test_a_mix_of_node_sizes_falls_into_blocks_that_fit_both() -> None:
    eight, four = find_node("dgx-a100"), find_node("perlmutter")
    net = Fabric(name="net", kind=FabricKind.CLOS, technology="ib", latency_s=5e-6, node_bytes_per_s=50 * GB)
    groups = (
        NodeGroup(node=eight, count=3, fabrics=("net",)),
        NodeGroup(node=four, count=4, fabrics=("net",)),
    )
    cluster = Cluster(name="mix", groups=groups, fabrics=(net,))
    assert [level.size for level in cluster.levels] == [4, 8, 40]
    assert cluster.levels[0].bytes_per_s == 300 * GB
    assert cluster.levels[-1].bytes_per_s == 50 * GB / 8
    with pytest.raises(OutOfDomainError, match="mixes nodes of 4 and 8 devices"):
        _ = cluster.devices_per_node
    with pytest.raises(OutOfDomainError, match="mixes a100-40gb, a100-80gb"):
        _ = cluster.device


@pytest.mark.parametrize(
    ("fabrics", "names", "message"),
    [
        ((), (), "4 nodes of dgx-a100 need a fabric"),
        ((), ("lan",), "no fabric is called 'lan'; known: none"),
        (
            ("roce",),
            ("roce",),
            "gives no node_bytes_per_s, and node dgx-a100 has no NIC of technology 'roce'",
        ),
        (("ib", "ib"), ("ib",), "fabric 'ib' is given twice"),
    ],
)
def test_a_cluster_that_nothing_joins_is_refused(
    fabrics: tuple[str, ...], names: tuple[str, ...], message: str
) -> None:
    made = tuple(Fabric(name=name, kind=FabricKind.CLOS, technology=name, latency_s=0.0) for name in fabrics)
    group = NodeGroup(node=find_node("dgx-a100"), count=4, fabrics=names)
    with pytest.raises(ValueError, match=message):
        Cluster(name="x", groups=(group,), fabrics=made)


def test_groups_without_a_common_fabric_are_disconnected() -> None:
    cluster = find_cluster("holmes-hybrid")
    apart = tuple(replace(group, fabrics=group.fabrics[:1]) for group in cluster.groups)
    with pytest.raises(ValueError, match="disconnected: groups infiniband and roce share no fabric"):
        replace(cluster, groups=apart)
