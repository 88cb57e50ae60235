"""Time and memory of one training step on stages and replicas of different devices, from measured layers.

Replica k of stage i takes c_ik = sum of its layers' measured times per micro-batch. One hop over the cut
behind stage i takes l_ik, the boundary tensor at the rate that one pair of devices attains. A stage waits for
what it needs from the stage before it (activations in, and its own gradients handed back before the next
ones arrive), and for a share x of the traffic with the stage behind it, which mostly runs beside its compute:

    s_ik = c_ik + 2 l_(i-1)k + 2 x l_ik
    step = max_k [ (B - 1) max_i s_ik + sum_i s_ik ] + max_i ring_i + max update.

Memory of a stage on one device, with f = min(B, P - i) micro-batches in flight:

    k params / tp + f (activations / tp + u residuals) + constant,

where `residuals` are the hidden-state tensors that tensor parallelism leaves whole (inputs of norms and
matmuls, dropout masks) and `constant` is the runtime's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.training.layer_profiles import LayerProfile, LayerTable, LinkCurve
from hardware.errors import OutOfDomainError

__all__ = ["HeteroCost", "HeteroModel", "HeteroPlan", "HeteroStage", "MemoryTerms", "hetero_cost"]

Floats = npt.NDArray[np.float64]

_FOLLOWER_SHARE = 0.3
"""x above. Chosen on nine measured runs on Titan RTX, RTX 2080 and RTX 3090 hosts joined by 1 Gb/s (Sailor's
validation runs); any value from 0.1 to 0.5 changes their mean error by at most 1.3 points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeteroStage:
    """Layers of one stage and the devices of its data-parallel replicas."""

    num_layers: int
    replicas: tuple[tuple[str, int], ...]
    """(device, tensor degree) of each replica, pipeline by pipeline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeteroPlan:
    """Stages in order; every stage has one replica per pipeline."""

    stages: tuple[HeteroStage, ...]
    micro_batch: int
    global_batch: int

    def __post_init__(self) -> None:
        counts = {len(stage.replicas) for stage in self.stages}
        if len(counts) != 1 or not min(counts):
            message = f"every stage needs the same number of replicas, not {sorted(counts)}"
            raise ValueError(message)
        if self.global_batch % (self.micro_batch * counts.pop()):
            message = f"global batch {self.global_batch} does not divide into equal micro-batches"
            raise ValueError(message)

    @property
    def num_replicas(self) -> int:
        """Data-parallel degree."""
        return len(self.stages[0].replicas)

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches per pipeline and step."""
        return self.global_batch // (self.micro_batch * self.num_replicas)

    @property
    def num_devices(self) -> dict[str, int]:
        """Devices used, by type."""
        total: dict[str, int] = {}
        for stage in self.stages:
            for device, tp in stage.replicas:
                total[device] = total.get(device, 0) + tp
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTerms:
    """Coefficients of the memory formula; fitted per software stack."""

    bytes_per_param: float
    """Weights, gradients, optimizer state and their working copies."""
    residual_tensors: float
    """Hidden-state tensors per layer that tensor parallelism leaves whole."""
    constant_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeteroModel:
    """Everything measured that the formulas read."""

    layers: LayerTable
    profiles: Mapping[str, LayerProfile]
    pair_links: Mapping[tuple[str, str], LinkCurve]
    """What one pair of devices of these types attains between hosts."""
    host_links: Mapping[tuple[str, str, int], LinkCurve]
    """What `tp` devices of a host attain together to another host; for gradient rings."""
    memory: MemoryTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class HeteroCost:
    """Predicted step, part by part, and the memory of every stage's fullest device."""

    compute_s: float
    """Bottleneck stage over all micro-batches, fill and drain, without links."""
    exposed_p2p_s: float
    gradient_s: float
    update_s: float
    stage_bytes: tuple[float, ...]

    @property
    def step_s(self) -> float:
        """Time of one optimizer step."""
        return self.compute_s + self.exposed_p2p_s + self.gradient_s + self.update_s

    @property
    def peak_memory_bytes(self) -> float:
        """Memory of the fullest device."""
        return max(self.stage_bytes)


def hetero_cost(plan: HeteroPlan, model: HeteroModel) -> HeteroCost:
    """Return what one step of the plan costs.

    Raises
    ------
    OutOfDomainError
        if a profile or a link was never measured, or the layers do not add up to the model.
    """
    cuts = np.concatenate([[0], np.cumsum([stage.num_layers for stage in plan.stages])])
    if cuts[-1] != len(model.layers.num_params):
        message = f"the stages hold {cuts[-1]} layers, the model {len(model.layers.num_params)}"
        raise OutOfDomainError(message)
    compute, update = _stage_times(plan, model, cuts)
    hops = _hop_times(plan, model, cuts)
    slots = compute + 2.0 * hops[:-1] + 2.0 * _FOLLOWER_SHARE * hops[1:]
    alone, whole = _flush_s(compute, plan), _flush_s(slots, plan)
    return HeteroCost(
        compute_s=alone,
        exposed_p2p_s=whole - alone,
        gradient_s=_gradient_s(plan, model, cuts),
        update_s=float(update.max()),
        stage_bytes=_stage_bytes(plan, model, cuts),
    )


def _flush_s(slots: Floats, plan: HeteroPlan) -> float:
    per_pipeline = (plan.num_micro_batches - 1) * slots.max(axis=0) + slots.sum(axis=0)
    return float(per_pipeline.max())


def _stage_times(plan: HeteroPlan, model: HeteroModel, cuts: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return compute per micro-batch and the optimizer step of every stage and replica. shape (P, D)"""
    shape = (len(plan.stages), plan.num_replicas)
    compute, update = np.zeros(shape), np.zeros(shape)
    for i, stage in enumerate(plan.stages):
        for k, (device, tp) in enumerate(stage.replicas):
            profile = model.profiles[device]
            times = profile.times_s(plan.micro_batch, tp)
            if len(times) != cuts[-1]:
                message = f"the profile on {device} has {len(times)} layers, the model {cuts[-1]}"
                raise OutOfDomainError(message)
            compute[i, k] = times[cuts[i] : cuts[i + 1]].sum()
            update[i, k] = profile.update_s[plan.micro_batch, tp][cuts[i] : cuts[i + 1]].sum()
    return compute, update


def _hop_times(plan: HeteroPlan, model: HeteroModel, cuts: npt.NDArray[np.int64]) -> Floats:
    """Return the time of one hop before every stage and behind the last, 0 at the ends. shape (P + 1, D)"""
    hops = np.zeros((len(plan.stages) + 1, plan.num_replicas))
    for i in range(len(plan.stages) - 1):
        size = float(model.layers.output_bytes[cuts[i + 1] - 1]) * plan.micro_batch
        pairs = zip(plan.stages[i].replicas, plan.stages[i + 1].replicas, strict=True)
        for k, ((sender, _), (receiver, _)) in enumerate(pairs):
            link = _known(model.pair_links, (sender, receiver))
            hops[i + 1, k] = size / link.bytes_per_s(size)
    return hops


def _known(links: Mapping[tuple[str, str], LinkCurve], pair: tuple[str, str]) -> LinkCurve:
    link = links.get(pair)
    if link is None:
        message = f"no link from {pair[0]} to {pair[1]} was measured"
        raise OutOfDomainError(message)
    return link


def _gradient_s(plan: HeteroPlan, model: HeteroModel, cuts: npt.NDArray[np.int64]) -> float:
    """Return the slowest stage's gradient ring: 2 (D - 1) / D of its fp32 gradients over its slowest link."""
    degree = plan.num_replicas
    if degree == 1:
        return 0.0
    slowest = 0.0
    for i, stage in enumerate(plan.stages):
        size = 4.0 * float(model.layers.num_params[cuts[i] : cuts[i + 1]].sum())
        rates = []
        for k, (device, tp) in enumerate(stage.replicas):
            follower, _ = stage.replicas[(k + 1) % degree]
            link = model.host_links.get((device, follower, tp))
            if link is None:
                message = f"no link of {tp} devices from {device} to {follower} was measured"
                raise OutOfDomainError(message)
            rates.append(link.collective_frac * link.bytes_per_s(size / degree))
        slowest = max(slowest, 2.0 * (degree - 1) / degree * size / min(rates))
    return slowest


def _stage_bytes(plan: HeteroPlan, model: HeteroModel, cuts: npt.NDArray[np.int64]) -> tuple[float, ...]:
    terms, layers = model.memory, model.layers
    used = []
    for i, stage in enumerate(plan.stages):
        tp = min(degree for _, degree in stage.replicas)
        part = slice(int(cuts[i]), int(cuts[i + 1]))
        in_flight = min(plan.num_micro_batches, len(plan.stages) - i) * plan.micro_batch
        states = terms.bytes_per_param * float(layers.num_params[part].sum()) / tp
        kept = float(layers.activation_bytes[part].sum()) / tp
        whole = terms.residual_tensors * stage.num_layers * layers.residual_bytes
        used.append(states + in_flight * (kept + whole) + terms.constant_bytes)
    return tuple(used)
