from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.collectives.curves import find_technology, fit_curve
from costmodels.collectives.times import (
    SERVING,
    Algorithm,
    Collective,
    collective_choice,
    collective_log_sigma,
    collective_s,
    envelope,
    p2p_log_sigma,
    p2p_s,
    unknown_technologies,
)
from hardware.levels import Level, LinkKind

GIB = 2.0**30
MIB = 2.0**20


def level(name, size, rate, kind=LinkKind.SWITCH, technology="", latency_s=1e-6, **more):
    return Level(
        name=name, size=size, bytes_per_s=rate, latency_s=latency_s, kind=kind, technology=technology, **more
    )


def rails(rate, technology="ib", latency_s=5e-6, size=4096):
    return level("world", size, rate, LinkKind.RAIL, technology, latency_s)


A100 = (level("node", 8, 300e9, technology="nvlink3"), rails(25e9))
H100 = (level("node", 8, 450e9, technology="nvlink4", in_network_reduce=True), rails(50e9))
B200 = (level("node", 8, 900e9, technology="nvlink5", in_network_reduce=True), rails(50e9, "efa", 15e-6))
MI300X = (level("node", 8, 448e9, LinkKind.MESH, "xgmi", pair_bytes_per_s=64e9), rails(50e9, "roce"))
FRONTIER = (
    level("package", 2, 200e9, LinkKind.MESH, "infinity-fabric", pair_bytes_per_s=200e9),
    level("node", 8, 125e9, LinkKind.MESH, "infinity-fabric", pair_bytes_per_s=100e9),
    level("group", 1024, 12.5e9, LinkKind.FABRIC, "slingshot", 2e-6),
    level("world", 65536, 7e9, LinkKind.FABRIC, "slingshot", 3e-6),
)


def one(op, size, degree, levels, stride=1, **more):
    return float(
        collective_s(op, np.array([size]), np.array([stride]), np.array([degree]), levels, **more)[0]
    )


def busbw(op, size, degree, levels, stride=1):
    factor = (degree - 1) / degree * (2 if op is Collective.ALL_REDUCE else 1)
    return size * factor / one(op, size, degree, levels, stride) / 1e9


def chosen(op, size, degree, levels, stride=1, **more):
    codes = collective_choice(op, np.array([size]), np.array([stride]), np.array([degree]), levels, **more)
    return Algorithm(int(codes[0]))


@pytest.mark.parametrize(("levels", "measured"), [(A100, 222), (H100, 445), (B200, 694)])
def test_large_all_reduce_on_eight_devices(levels, measured):
    assert busbw(Collective.ALL_REDUCE, 512 * MIB, 8, levels) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(("levels", "measured_us"), [(A100, 21.7), (H100, 15.7), (B200, 26.0)])
def test_small_all_reduce_on_eight_devices(levels, measured_us):
    assert one(Collective.ALL_REDUCE, 4096, 8, levels) * 1e6 == pytest.approx(measured_us, rel=0.10)


def test_four_nodes_are_bound_by_their_adapters():
    assert busbw(Collective.ALL_REDUCE, 16 * GIB, 32, B200) == pytest.approx(381.8, rel=0.15)


def test_ranks_from_which_the_switch_adds():
    picks = {
        name: [
            chosen(Collective.ALL_REDUCE, 16 * GIB, n, levels) is Algorithm.NVLS
            for n in (2, 3, 4, 5, 6, 7, 8)
        ]
        for name, levels in (("hopper", H100), ("blackwell", B200))
    }
    assert picks["hopper"] == [False, False, False, True, True, True, True]
    assert picks["blackwell"] == [False, False, False, False, True, True, True]


@pytest.mark.parametrize(("degree", "measured"), [(5, 414), (6, 436), (7, 460), (8, 473)])
def test_switch_reduction_grows_with_the_ranks(degree, measured):
    assert busbw(Collective.ALL_REDUCE, 16 * GIB, degree, H100) == pytest.approx(measured, rel=0.05)


def test_rack_of_72_with_and_without_switch_reduction():
    rack = level("rack", 72, 900e9, technology="nvlink5", in_network_reduce=True)
    assert busbw(Collective.ALL_REDUCE, 16 * GIB, 72, (rack,)) == pytest.approx(850, rel=0.10)
    plain = level("rack", 72, 900e9, technology="nvlink5")
    assert busbw(Collective.ALL_REDUCE, 16 * GIB, 72, (plain,)) == pytest.approx(680, rel=0.10)


def test_pcie_pool_binds():
    """Eight cards behind one host bridge of 4 GB/s each way per card do not see their 32 GB/s."""
    pooled = (level("node", 8, 4e9, LinkKind.PCIE, "pcie4"),)
    free = (level("node", 8, 32e9, LinkKind.PCIE, "pcie4"),)
    assert busbw(Collective.ALL_REDUCE, 512 * MIB, 8, pooled) < 4.0
    assert busbw(Collective.ALL_REDUCE, 512 * MIB, 8, pooled) == pytest.approx(1.4, rel=0.5)
    assert busbw(Collective.ALL_REDUCE, 512 * MIB, 8, free) > 8.0


@pytest.mark.parametrize(("degree", "measured"), [(2, 47.7), (8, 312.9)])
def test_mesh_gives_a_pair_one_link(degree, measured):
    assert busbw(Collective.ALL_REDUCE, 4 * GIB, degree, MI300X) == pytest.approx(measured, rel=0.10)


def test_group_across_nodes_owns_its_members_adapters():
    """Sixteen ranks in two nodes cross at eight adapters' rate, one rank per node at one adapter's."""
    wide = busbw(Collective.ALL_GATHER, 4 * GIB, 16, A100)
    narrow = busbw(Collective.ALL_GATHER, 4 * GIB, 16, A100, stride=8)
    assert 0.85 * 8 * 25 < wide < 8 * 25
    assert 0.85 * 25 < narrow < 25


def test_four_ranks_per_node_use_four_adapters():
    assert busbw(Collective.ALL_GATHER, 4 * GIB, 16, A100, stride=2) == pytest.approx(4 * 25 * 0.95, rel=0.03)


STAGED = (Algorithm.HIERARCHICAL, Algorithm.RECURSIVE)


def test_large_groups_leave_the_ring():
    size = 64 * MIB
    perlmutter = (level("node", 4, 300e9, technology="nvlink3"), *FRONTIER[2:])
    assert chosen(Collective.ALL_GATHER, size, 128, perlmutter, stride=4) is Algorithm.RING
    assert chosen(Collective.ALL_GATHER, size, 4096, perlmutter, stride=4) in STAGED
    assert chosen(Collective.ALL_REDUCE, size, 512, A100) is Algorithm.TREE


def test_a_library_of_rings_falls_behind_with_the_nodes():
    """RCCL on 2,048 dies gathers 6 to 33 times slower than in stages (arXiv 2504.18658, abstract)."""
    staged = (level("node", 8, 125e9, LinkKind.MESH, "xgmi", pair_bytes_per_s=100e9), *FRONTIER[2:])
    ratios = [
        one(Collective.ALL_GATHER, size, 2048, FRONTIER) / one(Collective.ALL_GATHER, size, 2048, staged)
        for size in (64e6, 128e6, 256e6)
    ]
    assert chosen(Collective.ALL_GATHER, 64e6, 2048, FRONTIER) is Algorithm.RING
    assert 36 > ratios[0] > ratios[1] > ratios[2] > 6


def test_contention_grows_on_the_dragonfly():
    times = [one(Collective.ALL_REDUCE, GIB, 64, FRONTIER, stride=s) for s in (16, 128, 256, 512)]
    assert times[1] / times[0] < times[2] / times[0] < times[3] / times[0]


def test_all_to_all_is_bound_by_what_leaves_the_node():
    n, size = 32, GIB
    expected = size * (n - 8) / n / (0.80 * 50e9)
    assert one(Collective.ALL_TO_ALL, size, n, H100) == pytest.approx(expected, rel=0.02)


def test_torus_all_to_all_follows_its_bisection():
    torus = (level("pod", 64, 6 * 45e9, LinkKind.TORUS, "ici", pair_bytes_per_s=45e9),)
    size = GIB
    expected = size * 4 / (8 * 45e9 * 0.85)
    assert one(Collective.ALL_TO_ALL, size, 64, torus) == pytest.approx(expected, rel=0.05)


def test_torus_axes_work_together():
    """Gathering V over the three axes of a torus takes V / (6 b) at full links: twice b per axis."""
    one_axis = level("x", 4, 2 * 45e9, LinkKind.TORUS, "ici", pair_bytes_per_s=45e9)
    cube = tuple(replace(one_axis, size=size) for size in (4, 16, 64))
    size = 4 * GIB
    expected = 63 / 64 * size / (6 * 45e9 * 0.9)
    assert one(Collective.ALL_GATHER, size, 64, cube) == pytest.approx(expected, rel=0.02)
    assert one(Collective.ALL_GATHER, size, 4, cube) == pytest.approx(
        0.75 * size / (2 * 45e9 * 0.9), rel=0.02
    )


def test_host_levels_pass_what_they_are_rated():
    """Two pairs of cards behind sockets that pass 2.5 GB/s per card: 2 cards per side share the crossing."""
    host = (
        level("island", 2, 32e9, LinkKind.PCIE, "pcie4"),
        level("node", 4, 2.5e9, LinkKind.PCIE, "upi"),
    )
    assert busbw(Collective.ALL_REDUCE, 512 * MIB, 4, host) == pytest.approx(5.2, rel=0.10)


def test_serving_takes_custom_kernels_for_small_buffers_only():
    assert chosen(Collective.ALL_REDUCE, 8192, 8, H100, allowed=SERVING) is Algorithm.CUSTOM
    assert one(Collective.ALL_REDUCE, 8192, 8, H100, allowed=SERVING) < 8e-6
    assert chosen(Collective.ALL_REDUCE, 256 * MIB, 8, H100, allowed=SERVING) is Algorithm.NVLS


def test_group_of_one_costs_nothing():
    for op in Collective:
        assert one(op, GIB, 1, H100) == 0.0
        assert chosen(op, GIB, 1, H100) is Algorithm.NONE
    assert float(p2p_s(np.array([GIB]), np.array([8]), H100, np.array([1]))[0]) == 0.0


def test_empty_buffers_cost_nothing():
    times = collective_s(
        Collective.ALL_GATHER, np.array([0.0, 1.0]), np.array([1, 1]), np.array([8, 8]), H100
    )
    assert times[0] == 0.0 < times[1]


def test_rows_equal_single_calls():
    sizes = np.array([1e3, 1e6, 1e9, 1e6])
    strides, degrees = np.array([1, 8, 1, 1]), np.array([8, 16, 64, 1])
    rows = collective_s(Collective.ALL_REDUCE, sizes, strides, degrees, H100)
    singles = [
        one(Collective.ALL_REDUCE, s, int(d), H100, int(t))
        for s, t, d in zip(sizes, strides, degrees, strict=True)
    ]
    assert rows.tolist() == pytest.approx(singles)
    table = envelope(Collective.ALL_REDUCE, strides, degrees, H100)
    assert table.seconds(sizes).tolist() == rows.tolist()


def test_sends_cross_the_level_between_the_stages():
    size = np.array([100 * MIB])
    inside = float(p2p_s(size, np.array([1]), H100)[0])
    across = float(p2p_s(size, np.array([8]), H100)[0])
    chain = float(p2p_s(size, np.array([4]), H100, np.array([4]))[0])
    assert across == pytest.approx(100 * MIB / (0.95 * 50e9), rel=0.02)
    assert inside < chain < across
    assert chain == pytest.approx((2 * float(p2p_s(size, np.array([4]), H100)[0]) + across) / 3, rel=1e-6)


def test_measured_sends_run_at_the_measured_rate_and_rings_lose_what_rings_lose_more():
    """A RoCE port of 25 GB/s that sends at 20: rated, it would be a port of 20 / 0.92 = 21.7 GB/s."""
    measured = replace(rails(20e9, technology="roce"), attained_frac=0.8)
    nominal = rails(20e9 / 0.92, technology="roce")
    send = p2p_s(np.array([4e9]), np.array([1]), (measured,))
    assert send[0] == pytest.approx(4e9 / 20e9, rel=0.01)
    assert send == pytest.approx(p2p_s(np.array([4e9]), np.array([1]), (nominal,)))
    for op in Collective:
        assert one(op, 1e9, 8, (measured,)) == pytest.approx(one(op, 1e9, 8, (nominal,)))


def test_unknown_technology_is_named_and_uncertain():
    plain = (level("node", 8, 100e9), rails(25e9))
    assert unknown_technologies(plain) == ("node",)
    arguments = (Collective.ALL_REDUCE, np.array([1e6]), np.array([1]), np.array([8]))
    assert collective_log_sigma(*arguments, plain)[0] > collective_log_sigma(*arguments, H100)[0]
    assert p2p_log_sigma(np.array([8]), H100)[0] == pytest.approx(0.2)
    assert not find_technology("no such link").known


def test_fit_recovers_a_curve():
    sizes = 2.0 ** np.arange(9, 30)
    times = 20e-6 + 80e-6 * sizes / (sizes + 1e7) + sizes * 1.75 / 450e9
    alpha, extra, half, rate, sigma = fit_curve("all_reduce", 8, sizes, times)
    assert (alpha, extra, half, rate) == pytest.approx((20e-6, 80e-6, 1e7, 450e9), rel=0.02)
    assert sigma < 0.01


groups = st.tuples(st.sampled_from([1, 2, 4, 8, 16]), st.integers(2, 600))
clusters = st.sampled_from([A100, H100, B200, MI300X, FRONTIER])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(Collective)), groups, clusters, st.floats(1, 34), st.floats(1.01, 100))
def test_a_larger_buffer_is_never_faster(op, group, levels, log_size, factor):
    stride, degree = group
    small = one(op, 2.0**log_size, degree, levels, stride)
    assert one(op, 2.0**log_size * factor, degree, levels, stride) >= small * (1 - 1e-12) > 0


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(Collective)),
    groups,
    clusters,
    st.floats(8, 34),
    st.floats(1.01, 10),
    st.integers(0, 3),
)
def test_more_bandwidth_is_never_slower(op, group, levels, log_size, factor, which):
    stride, degree = group
    which = min(which, len(levels) - 1)
    faster = tuple(
        replace(entry, bytes_per_s=entry.bytes_per_s * factor) if i == which else entry
        for i, entry in enumerate(levels)
    )
    before = one(op, 2.0**log_size, degree, levels, stride)
    assert one(op, 2.0**log_size, degree, faster, stride) <= before * (1 + 1e-12)
