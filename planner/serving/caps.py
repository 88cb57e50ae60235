"""Power caps as a choice of a serving plan: what each leaves of prompts and of decoding."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from costmodels.power.draw import device_power
from costmodels.power.response import cap_response
from hardware.device import Device

__all__ = ["PowerCap", "power_caps"]

_CAP_FRACS = (0.85, 0.7, 0.6, 0.5)
"""Of rated power; below half, energy rises again."""
_LEAST_SLOWDOWN = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerCap:
    """One cap of a device, and the speed that it leaves."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    cap_w: float
    """Of one device."""
    prefill_frac: float
    """Throughput of prompts over that without a cap."""
    decode_frac: float
    """Throughput of decode steps over that without a cap."""


def power_caps(device: Device) -> tuple[PowerCap, ...]:
    """Return the caps of a device that are worth trying, largest first; none where its power is unknown.

    Caps that bind neither phase, and those below what the device accepts, are left out.
    """
    if device.tdp_w is None:
        return ()
    power, response = device_power(device), cap_response(device.name)
    least = power.min_cap_w if power.min_cap_w is not None else power.idle_w
    prompt = max(power.draw_frac["matmul"], power.draw_frac["attention"])
    caps = []
    for frac in _CAP_FRACS:
        if frac * power.rated_w < least:
            continue
        kept = response.throughput_frac(
            np.full(2, frac), np.array([prompt, power.draw_frac["decode-attention"]])
        )
        if kept.min() < 1.0 - _LEAST_SLOWDOWN:
            caps.append(
                PowerCap(cap_w=frac * power.rated_w, prefill_frac=float(kept[0]), decode_frac=float(kept[1]))
            )
    return tuple(caps)
