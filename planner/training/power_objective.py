"""What power does to a training search: a cap under a budget slows kernels, an objective orders rows."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from costmodels.cost_table import CostTable
from costmodels.job import TrainingJob
from costmodels.power.draw import DevicePower, step_energy_j
from costmodels.power.response import cap_response
from costmodels.power.training import training_power
from hardware.cluster import Cluster
from hardware.device import Device
from hardware.errors import InputError, OutOfDomainError
from hardware.pricing import device_price
from planner.request import TrainRequest

__all__ = ["PowerView", "power_view"]

Floats = npt.NDArray[np.float64]

_BUSY = ("forward_s", "backward_s", "recompute_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerView:
    """How a request's power budget and objective change the costs that a search sees."""

    cap_w: float | None
    """Of every device; None where no budget binds."""
    throughput_frac: float
    """Of the kernels under the cap."""
    score: Callable[[CostTable], Floats]
    """What the search makes least."""
    notes: tuple[str, ...] = ()

    def slowed(self, costs: CostTable) -> CostTable:
        """Return costs with kernels as slow as the cap makes them; other parts draw less than any cap."""
        if self.throughput_frac == 1.0:
            return costs
        slower = replace(costs, **{name: getattr(costs, name) / self.throughput_frac for name in _BUSY})
        # The learned correction is a share of what the model says of the step.
        grown = (slower.step_s - costs.correction_s) / (costs.step_s - costs.correction_s)
        return replace(slower, correction_s=costs.correction_s * grown)


def power_view(request: TrainRequest, job: TrainingJob, cluster: Cluster) -> PowerView:
    """Return the power side of a training request.

    Raises
    ------
    InputError
        if the budget leaves every device less than it accepts as a cap.
    """
    if request.power_budget_w is None and request.objective == "throughput":
        return PowerView(cap_w=None, throughput_frac=1.0, score=lambda costs: costs.step_s)
    power = training_power(cluster.device, job)
    cap_w, throughput, notes = _cap(request, cluster, power)
    return PowerView(
        cap_w=cap_w,
        throughput_frac=throughput,
        score=_score(request.objective, cluster, power, cap_w),
        notes=notes,
    )


def _cap(
    request: TrainRequest, cluster: Cluster, power: DevicePower
) -> tuple[float | None, float, tuple[str, ...]]:
    """Return the cap of each device, the throughput of kernels under it, and what to say of it."""
    if request.power_budget_w is None:
        return None, 1.0, ()
    share_w = request.power_budget_w / cluster.num_devices
    if share_w < power.idle_w:
        message = (
            f"power_budget_w: {request.power_budget_w:g} W is {share_w:.0f} W for each of "
            f"{cluster.num_devices} devices, less than the {power.idle_w:.0f} W that one draws idle"
        )
        raise InputError(message)
    cap_w = min(share_w, power.rated_w)
    power.check_cap(cap_w, key="power_budget_w")
    natural = power.draw_frac["matmul"]
    if cap_w >= power.natural_w("matmul") * 1.1 or cap_w == power.rated_w:
        return None, 1.0, (f"power budget: a cap of {cap_w:.0f} W per device binds nothing",)
    response = cap_response(cluster.device.name)
    throughput = float(response.throughput_frac(cap_w / power.rated_w, natural))
    source = "measured" if response.measured else "that of older measured devices, hence a wider spread"
    if response.published:
        source = "by published figures of this device, the spread that of older measured ones"
    note = (
        f"power budget: {cap_w:.0f} W per device, kernels at {100 * throughput:.1f} % (response {source}; "
        f"spread {100 * response.log_sigma:.0f} %)"
    )
    return cap_w, throughput, (note,)


def _usd_per_hour(device: Device) -> float:
    try:
        return device_price(device).usd_per_hour
    except OutOfDomainError:
        message = f"objective: 'cost' needs a price of {device.name}; give it as `prices` in its device file"
        raise OutOfDomainError(message) from None


def _score(
    objective: str, cluster: Cluster, power: DevicePower, cap_w: float | None
) -> Callable[[CostTable], Floats]:
    if objective == "energy":
        return lambda costs: step_energy_j(power, costs.time_parts(), cluster.num_devices, cap_w=cap_w)
    if objective == "cost":
        usd_per_s = _usd_per_hour(cluster.device) / 3600 * cluster.num_devices
        return lambda costs: costs.step_s * usd_per_s
    return lambda costs: costs.step_s
