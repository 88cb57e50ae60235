"""Time and memory of one training step for every row of a table of strategies."""

from dataclasses import fields

import numpy as np
import numpy.typing as npt

from costmodels.cost_table import CostTable, MemoryTable
from costmodels.job import TrainingJob
from costmodels.kernels.times import kernel_model
from costmodels.memory.feasibility import fits_probability
from costmodels.memory.peak import memory_coefficients, peak_memory, usable_bytes
from costmodels.model_flops import training_flops
from costmodels.stacks import Stack, device_stack
from costmodels.strategy import ConfigTable
from costmodels.training.layer_costs import matmul_dtype
from costmodels.training.learned import MANY_DEVICES, correction_features, find_correction
from costmodels.training.spread import step_log_sigma, within_log_sigma
from costmodels.training.step_inputs import StepInputs, step_inputs
from costmodels.training.step_time import StepParts, step_parts
from hardware.cluster import Cluster
from hardware.device import Device

__all__ = ["evaluate", "rated_peak_flops_per_s", "training_inputs"]

Floats = npt.NDArray[np.float64]

_BLOCK_ROWS = 16_384
"""Rows assembled at once, so that the columns in flight stay in the processor's cache."""


def rated_peak_flops_per_s(device: Device, precision: str) -> float:
    """Return the rated peak that a training precision is measured against (fp8 for mxfp8, bf16 or fp16)."""
    dtype = {"nvfp4": "fp4"}.get(matmul_dtype(precision), matmul_dtype(precision))
    names = ("bf16", "fp16") if dtype == "bf16" else (dtype, "fp8", "bf16")
    for name in names:
        if getattr(device, f"{name}_flops_per_s") is not None:
            return device.peak_flops_per_s(name)
    return device.peak_flops_per_s(dtype)


def training_inputs(job: TrainingJob, cluster: Cluster, configs: ConfigTable) -> StepInputs:
    """Return what the time of each row is made of, before a software stack is applied."""
    return step_inputs(
        job,
        configs,
        kernels=kernel_model(cluster.device),
        levels=cluster.levels,
        num_nodes=cluster.num_nodes,
    )


def _assemble(inputs: StepInputs, stack: Stack) -> StepParts:
    """Return the parts of all rows, block by block."""
    if len(inputs) <= _BLOCK_ROWS:
        return step_parts(inputs, stack)
    starts = range(0, len(inputs), _BLOCK_ROWS)
    blocks = [step_parts(inputs.take(slice(s, s + _BLOCK_ROWS)), stack) for s in starts]
    columns = {f.name: np.concatenate([getattr(b, f.name) for b in blocks]) for f in fields(StepParts)}
    return StepParts(**columns)


def _corrected(
    job: TrainingJob,
    configs: ConfigTable,
    inputs: StepInputs,
    parts: StepParts,
    stack: Stack,
    num_devices: int,
) -> tuple[Floats, Floats]:
    """Return what the learned correction adds to each step, and the spread that is left within sources.
    [s], [ln]
    """
    correction = find_correction(stack.name)
    plain = within_log_sigma(job, stack)
    if correction is None:
        return np.zeros(len(configs)), np.full(len(configs), plain)
    features = correction_features(configs, inputs, parts, hidden=job.model.hidden, seq_len=job.seq_len)
    added = parts.total_s * np.expm1(correction.log_ratio(features))
    left = correction.sigma_many if num_devices >= MANY_DEVICES else correction.sigma
    return added, np.where(correction.covers(features), left, plain)


def evaluate(
    job: TrainingJob,
    cluster: Cluster,
    configs: ConfigTable,
    *,
    stack: Stack | None = None,
    corrected: bool = True,
    source: str = "",
    stack_known: bool = True,
) -> CostTable:
    """Return time and memory of every row of `configs`; row i of the answer is row i of the question.

    Parameters
    ----------
    stack : coefficients to use in place of the shipped ones of ``job.stack``; no learned correction then.
    corrected : whether the stack's learned correction, where it has one, is applied.
    source : the publication of a measured run; the interval is wider where the stack was not fitted to it.
    stack_known : False where the stack of such a run is a guess, which widens the interval too.
    """
    named = stack if stack is not None else device_stack(job.stack, cluster.device)
    chosen = named.on(cluster.device.name, matmul_dtype(job.precision))
    inputs = training_inputs(job, cluster, configs)
    parts = _assemble(inputs, chosen)
    rows = len(configs)
    correction_s, within = np.zeros(rows), np.full(rows, within_log_sigma(job, chosen))
    if corrected and stack is None:
        correction_s, within = _corrected(job, configs, inputs, parts, chosen, cluster.num_devices)
    sigma = step_log_sigma(
        within,
        parts,
        job=job,
        device=cluster.device,
        stack=chosen,
        source=source,
        stack_known=stack_known,
    )
    memory: MemoryTable = peak_memory(job, configs, chosen)
    usable = usable_bytes(cluster.device)
    return CostTable(
        **{f.name: getattr(parts, f.name) for f in fields(StepParts)},
        correction_s=correction_s,
        sigma=sigma,
        memory=memory,
        fits_probability=fits_probability(memory.peak_bytes, usable, memory_coefficients(chosen.name).sigma),
        model_flops=training_flops(job.model, job.seq_len, causal_halved=True) * job.global_batch,
        num_tokens=job.num_tokens,
        num_devices=cluster.num_devices,
        peak_flops_per_s=rated_peak_flops_per_s(cluster.device, job.precision),
        device_memory_bytes=usable,
    )
