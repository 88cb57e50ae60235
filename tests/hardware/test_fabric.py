import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.errors import OutOfDomainError
from hardware.fabric import Fabric, FabricKind, fabric_levels, largest_divisor, slice_dims
from hardware.levels import LinkKind

GB = 1e9


def _clos(**more: object) -> Fabric:
    return Fabric(name="net", kind=FabricKind.CLOS, technology="ib", latency_s=5e-6, **more)


def _levels(fabric: Fabric, num_nodes: int) -> list[tuple[str, int, float, float]]:
    levels = fabric_levels(
        fabric, inside_nodes=1, num_nodes=num_nodes, devices_per_node=8, node_bytes_per_s=400 * GB
    )
    return [(level.name, level.size, level.bytes_per_s / GB, level.latency_s) for level in levels]


def test_a_full_fat_tree_is_one_level() -> None:
    assert _levels(_clos(), 16) == [("net", 128, 50, 5e-6)]


def test_oversubscription_spares_the_leaf() -> None:
    fabric = _clos(leaf_nodes=4, oversubscription=2, far_latency_s=7e-6)
    assert _levels(fabric, 16) == [("net-leaf", 32, 50, 5e-6), ("net", 128, 25, 7e-6)]
    assert _levels(fabric, 4) == [("net", 32, 50, 5e-6)]
    assert _levels(fabric, 6)[0][:2] == ("net-leaf", 24), "six nodes lie evenly on two leaves"


def test_a_dragonfly_tapers_between_groups() -> None:
    fabric = Fabric(
        name="d", kind=FabricKind.DRAGONFLY, technology="slingshot", latency_s=3e-6, group_nodes=4, taper=0.5
    )
    assert _levels(fabric, 8) == [("d-group", 32, 50, 3e-6), ("d", 64, 25, 3e-6)]


def test_a_torus_is_a_level_per_axis() -> None:
    fabric = Fabric(
        name="t", kind=FabricKind.TORUS, technology="ici", latency_s=1e-6,
        dims=(4, 4, 8), link_bytes_per_s=45 * GB, wrap_multiple=4,
    )  # fmt: skip
    levels = fabric_levels(fabric, inside_nodes=1, num_nodes=4, devices_per_node=8, node_bytes_per_s=0)
    assert [(level.size, level.bytes_per_s / GB) for level in levels] == [(2, 45), (8, 90), (32, 90)]
    assert {level.kind for level in levels} == {LinkKind.TORUS}


@pytest.mark.parametrize(
    ("kind", "message"), [("torus", "needs dims and link_bytes_per_s"), ("dragonfly", "needs group_nodes")]
)
def test_a_shape_needs_its_numbers(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fabric(name="x", kind=FabricKind(kind), technology="ib", latency_s=0.0)


@given(st.integers(1, 500), st.integers(1, 500))
def test_the_largest_divisor_divides_and_fits(number: int, limit: int) -> None:
    divisor = largest_divisor(number, limit)
    assert number % divisor == 0
    assert divisor <= limit
    assert all(number % i for i in range(divisor + 1, min(number, limit) + 1))


def test_slices_are_as_cubic_as_they_fit() -> None:
    assert slice_dims(64, (16, 20, 28)) == (4, 4, 4)
    assert slice_dims(8960, (16, 20, 28)) == (16, 20, 28)
    assert slice_dims(256, (16, 16)) == (16, 16)
    with pytest.raises(OutOfDomainError, match="no box of 17 devices fits"):
        slice_dims(17, (4, 4, 4))
