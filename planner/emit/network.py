"""Environment of the collective library: which adapters, and what mixed islands can use between them."""

from collections.abc import Mapping, Sequence

from planner.emit.emission import Caveat
from planner.emit.training_launch import TrainingLaunch

__all__ = ["crossing_groups", "group_environment", "network_environment"]

_BY_TECHNOLOGY: dict[str, dict[str, str]] = {
    "ib": {"NCCL_IB_HCA": "mlx5"},
    "ib-shared": {"NCCL_IB_HCA": "mlx5"},
    "roce": {"NCCL_IB_HCA": "mlx5", "NCCL_IB_GID_INDEX": "3"},
    "efa": {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1"},
    "slingshot": {"FI_PROVIDER": "cxi", "NCCL_NET": "AWS Libfabric"},
    "ethernet": {"NCCL_IB_DISABLE": "1"},
}
"""Variables of NCCL and libfabric by network technology. Adapter names (`mlx5`) are a prefix match."""

_IB_LIKE = {"ib", "ib-shared", "roce"}


def group_environment(fabrics: Sequence[str]) -> dict[str, str]:
    """Return the variables of a host whose group is attached to these technologies, fastest first."""
    known = [name for name in fabrics if name in _BY_TECHNOLOGY]
    return dict(_BY_TECHNOLOGY[known[0]]) if known else {}


def network_environment(launch: TrainingLaunch) -> tuple[dict[str, str], tuple[Caveat, ...]]:
    """Return the variables that all hosts share, and what the library cannot be told."""
    if launch.vendor == "huawei":
        return {"HCCL_CONNECT_TIMEOUT": "1200"}, ()
    groups = {host.group: host.fabrics for host in launch.hosts}
    if len(groups) == 1:
        return (group_environment(next(iter(groups.values()))) if len(launch.hosts) > 1 else {}), ()
    return {}, ()


def crossing_groups(launch: TrainingLaunch) -> Mapping[str, bool]:
    """Return for every parallel axis whether one of its groups spans two islands of hosts."""
    island = {host.planned_name: host.group for host in launch.hosts}
    islands = [island[seat.host] for seat in launch.seats]
    s = launch.strategy
    sizes = {"tp": s.tp, "cp": s.cp, "dp": s.dp, "pp": s.pp}
    from planner.emit.rank_order import ORDERS

    found: dict[str, bool] = {}
    stride = 1
    for axis in ORDERS[launch.rank_order]:
        groups: dict[int, set[str]] = {}
        for rank, name in enumerate(islands):
            without = rank - rank // stride % sizes[axis] * stride
            groups.setdefault(without, set()).add(name)
        found[axis] = any(len(names) > 1 for names in groups.values())
        stride *= sizes[axis]
    return found
