"""What a training strategy costs: parts of a step in seconds and of memory in bytes, one row per strategy."""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from costmodels.intervals import Z90

__all__ = ["CostTable", "MemoryTable"]

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp] | npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class MemoryTable:
    """Peak bytes of the most loaded rank, part by part. Every column has one value per strategy."""

    weights_bytes: Floats
    gradients_bytes: Floats
    optimizer_bytes: Floats
    activations_bytes: Floats
    logits_bytes: Floats
    """Logits, their fp32 copies and gradients on the last stage."""
    gathered_bytes: Floats
    """Weights that a sharded stage holds whole for a moment."""
    buffers_bytes: Floats
    """Communication buffers and workspaces."""
    slack_bytes: Floats
    """What the allocator cannot reuse (fragmentation)."""
    runtime_bytes: Floats
    """Outside the allocator: context, collectives library, kernels."""

    def parts(self) -> dict[str, Floats]:
        """Return the parts by name, without the unit suffix."""
        return {f.name.removesuffix("_bytes"): getattr(self, f.name) for f in fields(self)}

    @property
    def allocated_bytes(self) -> Floats:
        """What the framework's allocator reports at its peak: all but slack and runtime."""
        return (
            self.weights_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.logits_bytes
            + self.gathered_bytes
            + self.buffers_bytes
        )

    @property
    def peak_bytes(self) -> Floats:
        """Sum of all parts: what the device must hold."""
        return self.allocated_bytes + self.slack_bytes + self.runtime_bytes

    def take(self, rows: Rows) -> Self:
        """Return the chosen rows."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True, slots=True, eq=False)
class CostTable:
    """Time of one optimizer step and peak memory, one row per strategy; the total is the sum of the parts."""

    forward_s: Floats
    """Forward kernels of all micro-batches on the slowest stage."""
    backward_s: Floats
    recompute_s: Floats
    tp_comm_s: Floats
    """Exposed tensor-parallel collectives."""
    cp_comm_s: Floats
    ep_comm_s: Floats
    pp_comm_s: Floats
    host_s: Floats
    """Time in which the device waits for the host to launch."""
    bubble_s: Floats
    """Waiting of the slowest stage for the pipeline to fill and drain."""
    dp_comm_s: Floats
    """Exposed gradient reduction and weight gathering."""
    tied_comm_s: Floats
    """Adding up the gradients of an embedding that the first and the last stage share."""
    optimizer_s: Floats
    fixed_s: Floats
    correction_s: Floats
    """What the learned correction adds or takes; zero where nothing was measured."""
    sigma: Floats
    """Standard deviation of ln(measured / predicted)."""
    memory: MemoryTable
    fits_probability: Floats
    model_flops: float
    """Of one step, all devices; of causal attention the half that is not masked."""
    num_tokens: int
    """Tokens per step."""
    num_devices: int
    peak_flops_per_s: float
    """Rated, one device, of the training dtype."""
    device_memory_bytes: float

    def __len__(self) -> int:
        return len(self.forward_s)

    def time_parts(self) -> dict[str, Floats]:
        """Return the parts of a step by name, in seconds."""
        names = [f.name for f in fields(self) if f.name.endswith("_s") and f.name != "peak_flops_per_s"]
        return {n.removesuffix("_s"): getattr(self, n) for n in names}

    @property
    def step_s(self) -> Floats:
        """Time of one optimizer step."""
        total: Floats = np.sum(list(self.time_parts().values()), axis=0)
        return total

    @property
    def step_low_s(self) -> Floats:
        """Lower end of the 90 % interval."""
        return self.step_s * np.exp(-Z90 * self.sigma)

    @property
    def step_high_s(self) -> Floats:
        """Upper end of the 90 % interval."""
        return self.step_s * np.exp(Z90 * self.sigma)

    @property
    def peak_memory_bytes(self) -> Floats:
        """Bytes that the most loaded device must hold."""
        return self.memory.peak_bytes

    @property
    def tokens_per_s_per_device(self) -> Floats:
        """Throughput per device."""
        return self.num_tokens / self.step_s / self.num_devices

    @property
    def mfu_frac(self) -> Floats:
        """Model FLOPs over what the devices are rated to do in that time."""
        return self.model_flops / self.step_s / self.num_devices / self.peak_flops_per_s

    def take(self, rows: Rows) -> Self:
        """Return the chosen rows."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        cut: dict[str, Any] = {n: v[rows] for n, v in values.items() if isinstance(v, np.ndarray)}
        return replace(self, **cut, memory=self.memory.take(rows))
