"""Draw of one device of a serving engine: fitted from measured runs, adapted to a model and a batch."""

from dataclasses import dataclass

import numpy as np

from costmodels.graph import Attention, Experts, ModelGraph, StateSpace
from costmodels.intervals import Z90
from costmodels.power.draw import DevicePower, device_power, serving_draw_w
from costmodels.power.serving import MEASURED_DEVICES, ServingRuns, serving_power
from hardware.device import Device

__all__ = ["EngineDraw", "engine_draw"]

_FAMILY_LOG_SIGMA = 0.25
"""Spread around means by phase where no engine was measured in that role (assumed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDraw:
    """Mean draw of one busy device."""

    watts: float
    log_sigma: float
    rated_w: float
    measured: bool
    """Whether engines on this very device were measured."""
    source: str

    @property
    def low_w(self) -> float:
        """Lower end of the 90 % interval."""
        return self.watts * float(np.exp(-Z90 * self.log_sigma))

    @property
    def high_w(self) -> float:
        """Upper end of the 90 % interval; no mean exceeds rated power."""
        return min(self.watts * float(np.exp(Z90 * self.log_sigma)), self.rated_w)


def engine_draw(
    model: ModelGraph,
    device: Device,
    role: str,
    *,
    num_devices: int,
    weight_bytes: float,
    batch: float,
    prompt_tokens: float,
    output_tokens: float,
) -> EngineDraw:
    """Return what a device draws in an engine that serves `batch` requests at a time on `num_devices`.

    Parameters
    ----------
    role : prefill, decode or both. Engines were measured doing both, mostly decoding; a device that only
        reads prompts draws what large matrix products do.
    weight_bytes : stored bytes per parameter.
    prompt_tokens, output_tokens : mean tokens of a prompt and of an answer.

    Raises
    ------
    OutOfDomainError
        if the rated power of the device is not known.
    """
    power = device_power(device)
    if role == "prefill":
        return EngineDraw(
            watts=serving_draw_w(power, role),
            log_sigma=_FAMILY_LOG_SIGMA,
            rated_w=power.rated_w,
            measured=power.measured,
            source="matrix products that fill a device, on the measured ones",
        )
    fitted, measured = serving_power(), device.name in MEASURED_DEVICES
    runs = _run(model, device, power, num_devices, weight_bytes, batch, prompt_tokens, output_tokens)
    watts = float(fitted.watts_per_device(runs)[0])
    return EngineDraw(
        watts=min(max(watts, power.blocked_w), power.rated_w),
        log_sigma=fitted.log_sigma if measured else fitted.other_log_sigma,
        rated_w=power.rated_w,
        measured=measured,
        source=f"engines on {device.name}" if measured else "engines on h100, scaled by rated figures",
    )


def _run(
    model: ModelGraph,
    device: Device,
    power: DevicePower,
    num_devices: int,
    weight_bytes: float,
    batch: float,
    prompt_tokens: float,
    output_tokens: float,
) -> ServingRuns:
    operators = [op for i in model.layers for op in model.blocks[i].operators]
    cache = sum(
        2.0 * (op.kv_latent_dim or op.num_kv_heads * (op.head_dim + op.value_dim))
        for op in operators
        if isinstance(op, Attention) and op.window is None
    )
    values = {
        "active_params": model.num_active_params,
        "total_params": model.num_params,
        "weight_bytes": weight_bytes,
        "num_layers": model.num_layers,
        "cache_bytes_per_token": max(cache, 1.0),
        "batch": max(batch, 1.0),
        "num_devices": num_devices,
        "prompt_tokens": max(prompt_tokens, 1.0),
        "output_tokens": output_tokens,
        "moe": any(isinstance(op, Experts) for op in operators),
        "recurrent": any(isinstance(op, StateSpace) for op in operators),
        "image": 0.0,
        "video": 0.0,
        "device": MEASURED_DEVICES.get(device.name, 0.0),
        "flops_per_s": device.bf16_flops_per_s or device.fp16_flops_per_s,
        "memory_bytes_per_s": device.memory_bytes_per_s,
        "rated_w": power.rated_w,
    }
    return ServingRuns(**{name: np.array([float(value or 0.0)]) for name, value in values.items()})
