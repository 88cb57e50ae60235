"""Joules and dollars of a step on groups of unlike devices."""

from costmodels.job import TrainingJob
from costmodels.power.draw import step_energy_j
from costmodels.power.training import training_power
from hardware.cluster import Cluster
from hardware.errors import OutOfDomainError
from hardware.pricing import device_price
from planner.training.mixed_plan import MixedPipeline

__all__ = ["mixed_cost_usd", "mixed_energy_j"]


def mixed_energy_j(pipeline: MixedPipeline, job: TrainingJob, cluster: Cluster) -> float | None:
    """Return the energy of all devices for one step; None where a device's rated power is not known. [J]

    A stage computes its micro-batches, reduces its gradients and updates its weights; else it waits.
    """
    if any(group.node.device.tdp_w is None for group in cluster.groups):
        return None
    strategy = pipeline.strategy
    num_micro_batches = job.global_batch // (strategy.dp * strategy.micro_batch)
    powers = [training_power(group.node.device, job) for group in cluster.groups]
    total_j = 0.0
    for stage in pipeline.stages:
        parts = {
            "forward": num_micro_batches * stage.compute_s,
            "dp_comm": stage.gradient_s,
            "optimizer": pipeline.other_s,
        }
        parts["bubble"] = max(pipeline.step_s - sum(parts.values()), 0.0)
        total_j += float(step_energy_j(powers[stage.group], parts, stage.tp * strategy.dp))
    return total_j


def mixed_cost_usd(cluster: Cluster, step_s: float) -> float | None:
    """Return what all devices cost for one step; None where the catalogue knows no price of one."""
    try:
        per_hour = [device_price(group.node.device).usd_per_hour for group in cluster.groups]
    except OutOfDomainError:
        return None
    hourly = sum(usd * group.num_devices for usd, group in zip(per_hour, cluster.groups, strict=True))
    return hourly * step_s / 3600.0
