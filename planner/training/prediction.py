"""One row of a cost table as the prediction of a plan, and what a reader must know before relying on it."""

from costmodels.cost_table import CostTable
from costmodels.job import TrainingJob
from costmodels.kernels.times import kernel_model
from costmodels.model_flops import training_flops
from costmodels.power.draw import step_energy_j
from costmodels.power.training import training_power
from costmodels.stacks import ANCHORED, Stack, anchor_of, device_stack, find_stack, fitted_ranges
from costmodels.strategy import Strategy
from costmodels.training.layer_costs import matmul_dtype
from costmodels.training.spread import between, is_new_device, is_new_source
from hardware.cluster import Cluster
from hardware.device import Device, Price
from hardware.errors import OutOfDomainError
from hardware.levels import LinkKind
from hardware.pricing import device_price
from planner.facility import FacilityOptions, SiteEnergy, site_energy
from planner.plan import TrainingPrediction

__all__ = ["training_diagnostics", "training_prediction"]


def training_prediction(
    costs: CostTable,
    row: int,
    job: TrainingJob,
    cluster: Cluster,
    *,
    cap_w: float | None = None,
    facility: FacilityOptions | None = None,
) -> TrainingPrediction:
    """Return row `row` of `costs`, with energy and money where the catalogue knows power and price.

    Parameters
    ----------
    cap_w : power cap of every device; None for none.
    facility : site to count hosts, cooling, money and carbon of; None for devices alone.
    """
    time_parts = {name: float(column[row]) for name, column in costs.time_parts().items()}
    memory_parts = {name: float(column[row]) for name, column in costs.memory.parts().items()}
    step_s = float(costs.step_s[row])
    price, energy_j = _price(cluster.device), _energy_j(time_parts, job, cluster, cap_w)
    return TrainingPrediction(
        step_s=step_s,
        step_low_s=float(costs.step_low_s[row]),
        step_high_s=float(costs.step_high_s[row]),
        tokens_per_s_per_device=float(costs.tokens_per_s_per_device[row]),
        mfu_frac=float(costs.mfu_frac[row]),
        peak_memory_bytes=float(costs.peak_memory_bytes[row]),
        memory_parts_bytes=memory_parts,
        memory_capacity_bytes=costs.device_memory_bytes,
        fits_probability=float(costs.fits_probability[row]),
        time_parts_s=time_parts,
        energy_j=energy_j,
        watts_per_device=None if energy_j is None else energy_j / step_s / cluster.num_devices,
        joules_per_token=None if energy_j is None else energy_j / costs.num_tokens,
        site=_site(facility, cluster, energy_j, step_s, costs.num_tokens),
        cost_usd=None if price is None else price.usd_per_hour / 3600 * cluster.num_devices * step_s,
    )


def _site(
    facility: FacilityOptions | None,
    cluster: Cluster,
    energy_j: float | None,
    step_s: float,
    num_tokens: float,
) -> SiteEnergy | None:
    if energy_j is None or cluster.device.tdp_w is None:
        return None
    pools = {cluster.device.tdp_w: (energy_j / step_s / cluster.num_devices, cluster.num_devices)}
    return site_energy(facility, pools, num_tokens / step_s)


def _energy_j(
    time_parts: dict[str, float], job: TrainingJob, cluster: Cluster, cap_w: float | None
) -> float | None:
    """Return the energy of all devices for one step; None where their rated power is not known. [J]"""
    if cluster.device.tdp_w is None:
        return None
    power = training_power(cluster.device, job)
    return float(step_energy_j(power, time_parts, cluster.num_devices, cap_w=cap_w))


def _price(device: Device) -> Price | None:
    try:
        return device_price(device)
    except OutOfDomainError:
        return None


def _money_note(device: Device) -> str:
    price = _price(device)
    if price is None:
        return f"cost_usd is null: the catalogue knows no price of {device.name}"
    source = f"{price.provider}, {price.product}, {price.date}"
    return f"cost_usd at {price.usd_per_hour:g} USD per device and hour ({source})"


def _kernel_notes(device: Device) -> list[str]:
    model = kernel_model(device)
    if model.measured:
        return []
    source = model.source.file
    return [f"no kernel of {device.name} was measured: times come from the {source} surface, less surely"]


def _energy_note(job: TrainingJob, device: Device) -> str:
    if device.tdp_w is None:
        return f"energy_j is null: the rated power of {device.name} is not known"
    power = training_power(device, job)
    rest = "as measured" if power.measured else "the mean of the devices that were measured"
    products = "by how far the model's own use the device, " if power.by_shape else ""
    return (
        f"energy_j: devices only; draw of matrix products {products}otherwise {rest}, of collectives assumed"
    )


def _interval_notes(stack: Stack, device: Device, number_format: str) -> list[str]:
    """Return what the interval counts in beyond the spread within measured sources."""
    added = between()
    counted = []
    if is_new_source(stack, ""):
        new = "clusters of other owners" if stack.sources else "a stack that was not measured"
        counted.append(
            f"{added.of_new_source(stack):.2f} in ln for {new}, {added.host_frac:.2f} of the share of the"
            " step that waits for the host"
        )
    if is_new_device(stack, device, number_format):
        counted.append(f"{added.device:.2f} for a device and format without a fitted run")
    return [f"the interval is wider than among measured runs by {', '.join(counted)}"] if counted else []


def _range_notes(job: TrainingJob, num_devices: int, best: Strategy) -> list[str]:
    """Return where the best strategy lies outside of what the runs of its stack ran."""
    found = {
        "devices": num_devices,
        "seq_len": job.seq_len,
        "hidden": job.model.hidden,
        **{degree: getattr(best, degree) for degree in ("tp", "pp", "cp", "ep")},
    }
    outside = [
        f"{name} {found[name]:,} (measured {low:,} to {high:,})"
        for name, (low, high) in fitted_ranges(job.stack).items()
        if not low <= found[name] <= high
    ]
    return [f"beyond the runs that {job.stack} was fitted to: {', '.join(outside)}"] if outside else []


def _stack_notes(job: TrainingJob, device: Device) -> list[str]:
    """Return what the stack's coefficients rest on, and where this request leaves that ground."""
    stack = find_stack(job.stack)
    number_format = matmul_dtype(job.precision)
    notes = [f"software stack {stack.name} ({stack.summary}); evidence: {stack.evidence}"]
    if f"{device.name}/{number_format}" not in dict(stack.adjust):
        notes.append(
            f"no run on {device.name} in {number_format} was fitted: its matmul times carry no correction"
        )
    anchor = anchor_of(device.name, number_format)
    if anchor is not None and stack.name not in ANCHORED:
        notes.append(
            f"no run of {stack.name} on {device.name} was measured: its matmul factor rests on {anchor}, "
            f"which {', '.join(ANCHORED)} reached; with newer software it is a guess"
        )
    notes += _interval_notes(stack, device, number_format)
    if job.model.num_active_params < job.model.num_params:
        notes.append(
            "routed experts: their kernels change most between versions, so the interval is wider"
            f" (spread {stack.sigma_experts:.2f} in ln, dense models {stack.sigma:.2f})"
        )
    return notes


_LONG_ATTENTION = 1.25
"""Times more arithmetic by counting the masked half of attention, from which on a plan says so."""


def _mfu_note(job: TrainingJob) -> list[str]:
    """Return by how much MFU would read higher with all of causal attention counted, where that is much."""
    needed = training_flops(job.model, job.seq_len, causal_halved=True)
    more = training_flops(job.model, job.seq_len) / needed
    if more < _LONG_ATTENTION:
        return []
    return [
        "mfu_frac leaves the masked half of attention out; counted in full, as papers up to 2023 do, it "
        f"would read {more:.2f} times as much"
    ]


def _format_notes(job: TrainingJob, device: Device) -> list[str]:
    """Return that a device without bf16 is costed at its fp16 rate."""
    if job.precision != "bf16" or device.rates("bf16"):
        return []
    return [f"{device.name} has no bf16: costed at its fp16 rate; run it in fp16 (--precision fp16)"]


def _attention_note(job: TrainingJob, device: Device) -> list[str]:
    """Return that the stack's fused attention does not run on a device."""
    if find_stack(job.stack).flash == device_stack(job.stack, device).flash:
        return []
    return [
        f"{job.stack} has no fused attention for {device.name}: costed without, attention scores are kept in "
        "memory"
    ]


def training_diagnostics(job: TrainingJob, cluster: Cluster, best: Strategy) -> tuple[str, ...]:
    """Return what was assumed, what was left out, and where the best plan stands on thin ground."""
    notes = [
        *_stack_notes(job, cluster.device),
        *_range_notes(job, cluster.num_devices, best),
        *_format_notes(job, cluster.device),
        *_attention_note(job, cluster.device),
        *_mfu_note(job),
        f"optimizer {job.optimizer} with fp32 master weights and moments",
        *_kernel_notes(cluster.device),
        _energy_note(job, cluster.device),
        _money_note(cluster.device),
    ]
    if job.model.max_seq_len is not None and job.seq_len > job.model.max_seq_len:
        notes.append(
            f"seq_len {job.seq_len} is longer than the {job.model.max_seq_len} that {job.model.name} states"
        )
    inner = [level.size for level in cluster.levels if level.kind not in (LinkKind.FABRIC, LinkKind.RAIL)]
    if best.tp > max(inner, default=1):
        notes.append(f"tensor parallelism {best.tp} leaves the scale-up domain of {max(inner, default=1)}")
    return tuple(notes)
