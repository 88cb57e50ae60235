"""Nested levels of a cluster: package, node, rack, fabric, world, inner to outer.

A rank order fills the inner level first, so a parallel group with stride `s` and degree `d` lies partly
inside each level. Levels are what the vectorised cost models read; the full graph is for placement.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

__all__ = ["Level", "LinkKind", "group_factors"]

Ints = npt.NDArray[np.int64]


class LinkKind(StrEnum):
    """How the devices of one level reach each other."""

    SWITCH = "switch"
    """Any pair at full rate (NVSwitch, UB, a non-blocking Clos)."""
    MESH = "mesh"
    """Direct links, a pair gets a fraction of the device's total (xGMI, HCCS, hybrid cube mesh)."""
    PCIE = "pcie"
    """Through a host's PCIe roots and sockets; shared."""
    RAIL = "rail"
    """NIC of the same index first, then across rails inside the node."""
    FABRIC = "fabric"
    """NICs over a routed network (fat tree, dragonfly)."""
    TORUS = "torus"
    WAN = "wan"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """All devices that reach each other without leaving one border.

    Bandwidth is what one device gets across this level, one way, when all devices use it at once.
    """

    name: str
    """package, node, rack, pod, world."""
    size: int
    """Devices inside one instance of the level; a multiple of the next inner level's size."""
    bytes_per_s: float
    """Rated bandwidth per device, one way."""
    latency_s: float
    kind: LinkKind
    technology: str = ""
    """Key of measured curves: nvlink3, nvlink4, nvlink5, xgmi, infinity-fabric, hccs, ub, pcie4, ib, roce, efa, slingshot, ethernet."""
    in_network_reduce: bool = False
    """NVLS or SHARP: the switch adds."""
    pair_bytes_per_s: float | None = None
    """What one pair alone gets, where less than `bytes_per_s` (a mesh) or more."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.bytes_per_s <= 0 or self.latency_s < 0:
            message = f"level {self.name}: size and bytes_per_s must be positive, latency_s not negative"
            raise ValueError(message)


def group_factors(level_sizes: tuple[int, ...], stride: Ints, degree: Ints) -> Ints:
    """Return how many ways a group fans out at each level; the product over levels is its degree.

    A group takes every `stride`-th rank, `degree` of them. With level sizes 8 and 64, a group of stride 4
    and degree 8 has two members in each of four nodes: factors 2 and 4.

    Parameters
    ----------
    level_sizes : devices inside each level, inner to outer, each a multiple of the one before.
    stride : distance between neighbouring members, in ranks. shape (rows,)
    degree : members of the group. shape (rows,)

    Returns
    -------
    Factors, shape (levels, rows). A group that does not tile a level counts as its ceiling there.
    """
    span = np.maximum(stride, 1)
    left = degree.astype(np.int64, copy=True)
    factors = np.ones((len(level_sizes), len(left)), dtype=np.int64)
    for i, size in enumerate(level_sizes):
        inside = np.clip(-(-size // span), 1, left) if i < len(level_sizes) - 1 else left
        steps = -(-left // inside)
        factors[i] = inside
        left = steps
        span = span * inside
    return factors
