"""Networks between nodes: fat trees, rails, dragonflies, tori, wide-area links; from a fabric to its levels.

A fabric is described, never built as a graph: a cluster of thousands of nodes is one node's graph and this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from hardware.errors import OutOfDomainError
from hardware.fabric_load import hashed_load, planned_load, split_load
from hardware.levels import Level, LinkKind
from hardware.units import BytesPerSecond, Seconds

__all__ = ["Fabric", "FabricKind", "Routing", "fabric_levels", "largest_divisor", "slice_dims"]

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class Routing(StrEnum):
    """How flows are put on the uplinks of a leaf."""

    ECMP = "ecmp"
    """Each flow by its hash: some uplinks get several, others none."""
    PLANNED = "planned"
    """Whole flows dealt one by one (traffic planning, C4)."""
    SPLIT = "split"
    """The flows that are left over are split, so that every uplink carries the same (Ethereal, spraying)."""


class FabricKind(StrEnum):
    """The shape of a network."""

    CLOS = "clos"
    """Leaf and spine; `oversubscription` applies outside a leaf (or pod) of `leaf_nodes`."""
    RAIL = "rail"
    """A fat tree whose leaves join NICs of the same index."""
    DRAGONFLY = "dragonfly"
    """Groups of `group_nodes` at full rate, `taper` of it between groups."""
    TORUS = "torus"
    """`dims` devices per axis with `link_bytes_per_s` each way to every neighbour."""
    SWITCH = "switch"
    """A scale-up switch above the node (UB level 2)."""
    WAN = "wan"


_LINK_KIND = {
    FabricKind.CLOS: LinkKind.FABRIC,
    FabricKind.RAIL: LinkKind.RAIL,
    FabricKind.DRAGONFLY: LinkKind.FABRIC,
    FabricKind.TORUS: LinkKind.TORUS,
    FabricKind.SWITCH: LinkKind.SWITCH,
    FabricKind.WAN: LinkKind.WAN,
}
_NEAR_NAME = {kind: "group" if kind is FabricKind.DRAGONFLY else "leaf" for kind in FabricKind}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """One network that nodes attach to."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    kind: FabricKind
    technology: str
    """Key of measured curves and of the NICs that attach: ib, roce, efa, slingshot, ethernet, ub, ici."""
    latency_s: Seconds
    """From device to device, nearest neighbours of the fabric."""
    node_bytes_per_s: BytesPerSecond | None = None
    """What one whole node can send, one way; left out, the node's NICs of this technology say it."""
    attained_frac: Fraction | None = None
    """Set where `node_bytes_per_s` is what single sends attained, not rated: its share of the rated speed."""
    max_nodes: Count | None = None
    """How many nodes the fabric can join; left out, any number."""
    oversubscription: Annotated[float, Field(ge=1)] = 1.0
    leaf_nodes: Count | None = None
    """Nodes under one leaf switch or pod, which the oversubscription spares."""
    group_nodes: Count | None = None
    """Nodes of one dragonfly group."""
    uplinks: Count | None = None
    """Of one leaf; together with `routing` it says how evenly flows fill them."""
    flows_per_node: Count = 1
    """Flows that a node sends out of its leaf at once: one per NIC in a collective over all devices."""
    routing: Routing | None = None
    """Left out, uplinks carry what `oversubscription` says without collisions."""
    taper: Fraction = 1.0
    """Share of the injection rate that all groups together can send to each other."""
    far_latency_s: Seconds | None = None
    """Latency outside a leaf or group, where it differs."""
    dims: tuple[Count, ...] = ()
    """Largest torus, in devices per axis."""
    link_bytes_per_s: BytesPerSecond | None = None
    wrap_multiple: Count = 1
    """An axis closes into a ring when it is a multiple of this length (4 on TPU v4 and v5p, 16 on v5e)."""
    in_network_reduce: bool = False

    def __post_init__(self) -> None:
        needed = {FabricKind.TORUS: ("dims", "link_bytes_per_s"), FabricKind.DRAGONFLY: ("group_nodes",)}
        missing = [field for field in needed.get(self.kind, ()) if not getattr(self, field)]
        if missing:
            message = f"a {self.kind} fabric needs {' and '.join(missing)}"
            raise ValueError(message)
        if self.routing is not None and not (self.uplinks and self.leaf_nodes):
            message = "routing needs uplinks and leaf_nodes: flows of a leaf share its uplinks"
            raise ValueError(message)

    @property
    def even_frac(self) -> float:
        """Share of the uplinks' rate that flows of the fullest uplink get: 1 where all carry the same."""
        if self.routing is None or self.uplinks is None or self.leaf_nodes is None:
            return 1.0
        flows = self.leaf_nodes * self.flows_per_node
        loads = {Routing.ECMP: hashed_load, Routing.PLANNED: planned_load, Routing.SPLIT: split_load}
        # Below one flow per uplink a flow has an uplink of its own at best.
        least = max(split_load(flows, self.uplinks), 1.0)
        return least / max(loads[self.routing](flows, self.uplinks), 1.0)

    def reach(self, devices_per_node: int) -> float:
        """Return how many nodes of that size the fabric can join; infinite if nothing limits it."""
        if self.kind is FabricKind.TORUS:
            return prod(self.dims) // devices_per_node
        return float("inf") if self.max_nodes is None else self.max_nodes


def largest_divisor(number: int, limit: float) -> int:
    """Return the largest divisor of `number` that is at most `limit`.

    Nodes are dealt evenly over leaves, groups and pods, so that every block of ranks lies in one of them.
    """
    return max(i for i in range(1, number + 1) if number % i == 0 and i <= limit)


def slice_dims(num_devices: int, dims: Sequence[int]) -> tuple[int, ...]:
    """Return the most cubic box of `num_devices` that fits into a torus of `dims`, longest axis last.

    Raises
    ------
    OutOfDomainError
        if no box of that many devices fits.
    """
    limits = sorted(dims)

    def boxes(left: int, axes: int) -> list[tuple[int, ...]]:
        if axes == 1:
            return [(left,)] if left <= limits[0] else []
        fits = [i for i in range(1, min(left, limits[axes - 1]) + 1) if left % i == 0]
        return [(*box, i) for i in fits for box in boxes(left // i, axes - 1)]

    found = [box for box in boxes(num_devices, len(limits)) if list(box) == sorted(box)]
    if not found:
        message = f"no box of {num_devices} devices fits a torus of {' x '.join(map(str, limits))}"
        raise OutOfDomainError(message)
    return min(found, key=lambda box: (sum(box), box))


def fabric_levels(
    fabric: Fabric, *, inside_nodes: int, num_nodes: int, devices_per_node: int, node_bytes_per_s: float
) -> tuple[Level, ...]:
    """Return the levels that `fabric` adds around blocks of `inside_nodes` to join `num_nodes`.

    Parameters
    ----------
    inside_nodes : nodes that inner fabrics already join; a divisor of `num_nodes`.
    node_bytes_per_s : what one node sends into this fabric.
    """
    if fabric.kind is FabricKind.TORUS:
        return _torus_levels(fabric, num_nodes * devices_per_node)
    device_bytes_per_s = node_bytes_per_s / devices_per_node
    near_nodes, far_frac = _near(fabric)
    levels = []
    near = inside_nodes * largest_divisor(num_nodes // inside_nodes, near_nodes / inside_nodes)
    if near > inside_nodes:
        levels.append(
            _level(fabric, near == num_nodes, near * devices_per_node, device_bytes_per_s, fabric.latency_s)
        )
    if num_nodes > near:
        far_latency_s = fabric.latency_s if fabric.far_latency_s is None else fabric.far_latency_s
        levels.append(
            _level(fabric, True, num_nodes * devices_per_node, device_bytes_per_s * far_frac, far_latency_s)
        )
    return tuple(levels)


def _near(fabric: Fabric) -> tuple[float, float]:
    """Return how many nodes have the full rate among themselves, and the share of it outside."""
    if fabric.kind is FabricKind.DRAGONFLY and fabric.group_nodes is not None:
        return fabric.group_nodes, fabric.taper
    if fabric.oversubscription > 1 or fabric.far_latency_s is not None or fabric.routing is not None:
        return fabric.leaf_nodes or 1, fabric.even_frac / fabric.oversubscription
    return float("inf"), 1.0


def _level(fabric: Fabric, is_whole: bool, size: int, bytes_per_s: float, latency_s: float) -> Level:
    return Level(
        name=fabric.name if is_whole else f"{fabric.name}-{_NEAR_NAME[fabric.kind]}",
        size=size,
        bytes_per_s=bytes_per_s,
        latency_s=latency_s,
        kind=_LINK_KIND[fabric.kind],
        technology=fabric.technology,
        in_network_reduce=fabric.in_network_reduce,
        attained_frac=fabric.attained_frac,
    )


def _torus_levels(fabric: Fabric, num_devices: int) -> tuple[Level, ...]:
    """Return one level per axis: a device moves data along an axis over its two links of that axis.

    A ring over a closed axis uses both directions, 2 links; over an open axis the way back takes the other
    direction, so one link's rate is left. Two devices on an axis share one link.
    """
    assert fabric.link_bytes_per_s is not None
    levels = []
    size = 1
    for axis, length in enumerate(slice_dims(num_devices, fabric.dims)):
        if length == 1:
            continue
        size *= length
        is_ring = length > 2 and length % fabric.wrap_multiple == 0
        levels.append(
            Level(
                name=f"{fabric.name}-{'xyz'[axis] if axis < 3 else axis}",
                size=size,
                bytes_per_s=fabric.link_bytes_per_s * (2 if is_ring else 1),
                latency_s=fabric.latency_s,
                kind=LinkKind.TORUS,
                technology=fabric.technology,
                pair_bytes_per_s=fabric.link_bytes_per_s,
            )
        )
    return tuple(levels)
