"""Fitted constants of allocator and runtime, by software stack, and what an allocator can get of a device."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from hardware.device import Device

__all__ = [
    "GoldenCoefficients",
    "MemoryCoefficients",
    "golden_coefficients",
    "memory_coefficients",
    "usable_bytes",
]

_USABLE_FRAC = 0.9875
"""Of a device's memory, what the driver leaves to processes: 79.15 of 80 GiB on an A100 (assumed for all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCoefficients:
    """Constants of one stack; the coefficient file names their samples."""

    workspace_bytes: float
    """Matmul workspaces and other constant buffers that live inside the allocator."""
    slack_frac: float
    """Share of the dynamic part that the allocator cannot reuse."""
    step_bytes: float
    """Per parameter that a rank updates, what the optimizer holds during its step beside the states."""
    runtime_bytes: float
    """Context, collectives library and kernels, outside the allocator."""
    expert_imbalance_frac: float
    """Routed tokens of the most crowded expert rank over the mean, minus one."""
    sigma: float
    """Standard deviation of ln(measured / predicted) peak on held-out runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCoefficients:
    """Constants of the byte-exact allocator figures of Megatron tests."""

    base_bytes: float
    """Kept beside model states and the engine's workspaces: batches, masks, random states."""
    deterministic_bytes: float
    """What deterministic mode adds beside its larger matmul workspace."""
    pipeline_bytes: float
    """Receive buffers of a pipeline."""
    local_bytes: float
    """What Megatron's own layers keep more than Transformer Engine's."""
    sigma: float
    """Standard deviation of ln(measured / predicted) peak on held-out tests."""


@cache
def golden_coefficients() -> GoldenCoefficients:
    """Return the constants fitted on Megatron's allocator figures."""
    return GoldenCoefficients(**_file()["goldens"])


@cache
def _file() -> dict[str, dict[str, Any]]:
    path = files("costmodels") / "data" / "coefficients" / "training" / "memory.json"
    loaded: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


@cache
def _table() -> dict[str, dict[str, float]]:
    return _file()["stacks"]


@cache
def memory_coefficients(stack: str = "") -> MemoryCoefficients:
    """Return the constants of a stack; the pooled ones where that stack's memory was never measured."""
    table = _table()
    return MemoryCoefficients(**{**table["all"], **table.get(stack, {})})


def usable_bytes(device: Device) -> float:
    """Return what an allocator can get of a device's memory."""
    return _USABLE_FRAC * device.memory_bytes
