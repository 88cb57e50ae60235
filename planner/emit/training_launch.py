"""Everything an emitter needs of one training plan: shapes, strategy, stages, and who runs where."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from costmodels.layer_split import chunk_layers
from costmodels.stacks import has_fused_attention
from costmodels.strategy import Strategy
from hardware.cluster import Cluster
from hardware.errors import InputError, OutOfDomainError
from hardware.schema import validate
from planner.emit.emission import Origin
from planner.emit.model_shape import ModelShape, model_shape
from planner.emit.rank_order import DEFAULT, ORDERS, Seat, seats_in_order
from planner.plan import PlanFile, TrainingPlan
from planner.request import TrainRequest, resolve
from planner.training.ranks import host_names

__all__ = ["Host", "TrainingLaunch", "training_launch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One operating system that runs ranks."""

    name: str
    planned_name: str
    index: int
    """Position in the cluster's own order."""
    devices: tuple[int, ...]
    """Device of local rank 0, 1, ..."""
    first_rank: int
    group: str
    """Name of its group of identical nodes."""
    fabrics: tuple[str, ...]
    """Network technologies of its group, fastest to all others first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLaunch:
    """One training plan, ready to be written for a framework."""

    origin: Origin
    shape: ModelShape
    strategy: Strategy
    seq_len: int
    global_batch: int
    precision: str
    stage_layers: tuple[int, ...]
    """Layers of every model chunk, in the model's order: chunk i runs on pipeline rank i mod pp."""
    device: str
    device_memory_bytes: float
    vendor: str
    fused_attention: bool
    """Whether kernels of fused attention are written for the device."""
    rank_order: str
    seats: tuple[Seat, ...]
    """By framework rank."""
    hosts: tuple[Host, ...]
    """In the order of their first rank: the node ranks."""
    is_grouped: bool
    """Whether every host's ranks are consecutive, as torchrun numbers them."""

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of one replica in one step."""
        return self.global_batch // (self.strategy.dp * self.strategy.micro_batch)

    @property
    def is_even(self) -> bool:
        """Whether every model chunk has the same number of layers."""
        return len(set(self.stage_layers)) == 1

    @property
    def ranks_per_host(self) -> int | None:
        """Ranks of every host; None where hosts differ."""
        sizes = {len(host.devices) for host in self.hosts}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def is_default_order(self) -> bool:
        """Whether ranks simply follow the cluster's own order of devices."""
        return [host.index for host in self.hosts] == list(range(len(self.hosts))) and all(
            host.devices == tuple(range(len(host.devices))) for host in self.hosts
        )


def training_launch(
    file: PlanFile[TrainingPlan],
    origin: Origin,
    *,
    orders: Sequence[str] = tuple(ORDERS),
    host_file: Sequence[str] = (),
) -> TrainingLaunch:
    """Return plan number `origin.plan_number` of `file`, with its model and cluster looked up.

    Parameters
    ----------
    orders : rank orders that the target framework can be told.
    host_file : real host names in the cluster's order; empty keeps the plan's names.

    Raises
    ------
    InputError
        if the plan names other hosts than its cluster has, or `host_file` another number of them.
    """
    plan = file.plans[origin.plan_number - 1]
    _refuse_islands(plan)
    request = validate(TrainRequest, _request_fields(file), "plan", prefix="request")
    job, cluster = resolve(request)
    shape = model_shape(job.model)
    stage_layers = _stage_layers(plan, job.model.num_layers)
    possible = [order for order in orders if order == DEFAULT or _takes_other_order(plan.strategy, shape)]
    order, seats = seats_in_order(plan.placement.ranks, plan.strategy, possible)
    hosts, grouped = _hosts(seats, cluster, host_file)
    group = cluster.groups[0]
    return TrainingLaunch(
        origin=origin,
        shape=shape,
        strategy=plan.strategy,
        seq_len=job.seq_len,
        global_batch=job.global_batch,
        precision=job.precision,
        stage_layers=stage_layers,
        device=group.node.device.name,
        device_memory_bytes=group.node.device.memory_bytes,
        vendor=group.node.device.vendor,
        fused_attention=has_fused_attention(group.node.device),
        rank_order=order,
        seats=tuple(seats),
        hosts=hosts,
        is_grouped=grouped,
    )


def _takes_other_order(s: Strategy, shape: ModelShape) -> bool:
    """Return whether stages may stand inside replicas: experts then need as many replicas as the rest."""
    routed = s.ep * s.etp if shape.num_experts else s.tp
    return s.pp == 1 or routed == s.tp * s.cp


def _request_fields(file: PlanFile[TrainingPlan]) -> dict[str, object]:
    """Return what of the request files depend on; costs do not matter here, so no stack is looked up."""
    names = set(TrainRequest.__dataclass_fields__) - {"stack"}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in file.request.items() if k in names}


def _refuse_islands(plan: TrainingPlan) -> None:
    if plan.local_updates is not None:
        message = (
            "plan: its groups average their models now and then (local_updates); none of the frameworks that "
            "files can be written for does that; plan without local_steps, or emit a plan of each group alone"
        )
        raise OutOfDomainError(message)
    if plan.sharding is not None:
        s = plan.sharding
        message = (
            f"plan: weights, gradients and optimizer are sharded over {s.weight_ranks}, {s.gradient_ranks} "
            f"and {s.optimizer_ranks} replicas; none of the frameworks that files can be written for divides "
            "them like that; emit a plan of the file that has one shard group"
        )
        raise OutOfDomainError(message)


def _stage_layers(plan: TrainingPlan, num_layers: int) -> tuple[int, ...]:
    seats = [seat for stage in plan.stages for seat in stage.seats]
    degrees = sorted({stage.tp for stage in plan.stages} | {seat.tp for seat in seats})
    if len(degrees) > 1:
        message = (
            f"plan: stages have tensor degrees {' and '.join(map(str, degrees))}; the frameworks that files "
            "can be written for take one tensor degree for all stages; plan with `allow: {tp: [N]}`"
        )
        raise OutOfDomainError(message)
    if plan.stages:
        return tuple(stage.num_layers for stage in plan.stages)
    return chunk_layers(num_layers, plan.strategy.pp * plan.strategy.vpp)


def _hosts(
    seats: Sequence[Seat], cluster: Cluster, host_file: Sequence[str]
) -> tuple[tuple[Host, ...], bool]:
    known = list(dict.fromkeys(name for name, _ in host_names(cluster)))
    used = list(dict.fromkeys(seat.host for seat in seats))
    strange = sorted(set(used) - set(known))
    if strange:
        message = (
            f"the plan places ranks on {', '.join(strange[:3])}, which cluster {cluster.name} of its request "
            f"does not have (it has {known[0]} to {known[-1]}); plan again for this cluster"
        )
        raise InputError(message)
    if host_file and len(host_file) != len(known):
        message = f"hosts: the file names {len(host_file)} hosts, the plan's cluster has {len(known)}"
        raise InputError(message)
    real = dict(zip(known, host_file or known, strict=True))
    groups = _group_of_hosts(cluster)
    runs = [(name, list(run)) for name, run in groupby(seats, key=lambda seat: seat.host)]
    devices = {name: tuple(s.device for s in seats if s.host == name) for name in used}
    first = {seat.host: seat.rank for seat in reversed(seats)}
    hosts = tuple(
        Host(
            name=real[name],
            planned_name=name,
            index=known.index(name),
            devices=devices[name],
            first_rank=first[name],
            group=groups[name][0],
            fabrics=groups[name][1],
        )
        for name in used
    )
    return hosts, len(runs) == len(used)


def _group_of_hosts(cluster: Cluster) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the group and the network technologies of every host."""
    names = [name for name, _ in host_names(cluster)]
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    start = 0
    for number, group in enumerate(cluster.groups):
        own = [cluster.fabric(name).technology for name in group.fabrics]
        for name in names[start : start + group.num_devices]:
            found[name] = (group.name or f"group-{number}", tuple(own))
        start += group.num_devices
    return found
