r"""How far a measured step may lie from the prediction, where it was measured and where it was not.

What is left inside a source that a stack was fitted to says little about the next source: another cluster
with other hosts, drivers and switches. Leaving sources and devices out of the fit whole shows how much comes
on top (benchmarks/training_spread.py); it is added in quadrature, as in a random-effects model:

.. math:: \sigma^2 = \sigma_{within}^2 + \tau_{source}^2 + (\tau_{host}\, s_{host})^2 + \tau_{device}^2

with :math:`s_{host}` the share of the step in which the device waits for the host, whose speed no rated
figure tells.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from costmodels.graph import Experts
from costmodels.job import TrainingJob
from costmodels.kernels.times import kernel_model
from costmodels.stacks import Stack, between_runs, device_keys
from costmodels.training.layer_costs import matmul_dtype
from costmodels.training.step_time import StepParts
from hardware.device import Device

__all__ = ["Between", "between", "is_new_device", "is_new_source", "step_log_sigma", "within_log_sigma"]

Floats = npt.NDArray[np.float64]

_TYPICAL_MATMUL = 8192
"""Side of the square matmul that stands for a step's, where kernels of a device were never measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """What is added to the spread of ln(measured / predicted) outside of what was measured."""

    source: float
    """On a source that the stack was not fitted to."""
    stack: float
    """The same where the stack was fitted to none."""
    host_frac: float
    """Of the share of the step that waits for a host which was not measured."""
    device: float
    """On a device, or in a number format, that no run was fitted for."""

    def of_new_source(self, stack: Stack) -> float:
        """Return what a source adds that the stack was not fitted to."""
        return self.source if stack.sources else self.stack


@cache
def between() -> Between:
    """Return the spreads that ship."""
    values = between_runs()
    return Between(**{name: float(values[name]) for name in Between.__slots__})


def within_log_sigma(job: TrainingJob, stack: Stack) -> float:
    """Return the spread of ln(measured / predicted) inside the sources that a stack was fitted to."""
    routed = any(isinstance(op, Experts) for block in job.model.blocks for op in block.operators)
    return stack.sigma_experts if routed else stack.sigma


def is_new_source(stack: Stack, source: str) -> bool:
    """Return whether `source` tells nothing of itself in the fit of `stack`."""
    return stack.sources is not None and source not in stack.sources


def is_new_device(stack: Stack, device: Device, number_format: str) -> bool:
    """Return whether no run on the device, or one of its dies, was fitted in that number format.

    Where no kernels of its family were measured either, the few runs there are tell of their own stack only:
    the device counts as new.
    """
    if stack.sources is None:
        return False
    if kernel_model(device).source.file == "generic":
        return True
    return not set(device_keys(f"{device.name}/{number_format}")) & set(between_runs()["devices"])


def _unmeasured_kernels(device: Device, number_format: str) -> float:
    """Return the spread of kernels that were measured on other devices only, zero where they were."""
    kernels = kernel_model(device)
    if kernels.measured:
        return 0.0
    time = kernels.matmul(_TYPICAL_MATMUL, _TYPICAL_MATMUL, _TYPICAL_MATMUL, dtype=number_format)
    return float(time.log_sigma)


def step_log_sigma(
    within: Floats,
    parts: StepParts,
    *,
    job: TrainingJob,
    device: Device,
    stack: Stack,
    source: str,
    stack_known: bool,
) -> Floats:
    """Return the spread of ln(measured / predicted) of every row.

    Parameters
    ----------
    within : what is left inside the sources of the stack. shape (rows,)
    parts : the step of each row, which says how much of it waits for the host.
    source : where the step would be measured; empty for a cluster that nobody measured.
    stack_known : False where the stack is a guess, which is as good as none that was measured.
    """
    variance = within**2
    added = between()
    number_format = matmul_dtype(job.precision)
    if is_new_source(stack, source):
        waits = parts.host_s / parts.total_s
        new = added.of_new_source(stack) if stack_known else added.stack
        variance = variance + new**2 + (added.host_frac * waits) ** 2
    if is_new_device(stack, device, number_format):
        variance = variance + added.device**2 + _unmeasured_kernels(device, number_format) ** 2
    spread: Floats = np.sqrt(variance)
    return spread
