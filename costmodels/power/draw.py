"""Watts and joules: what a device draws in each phase, a step or a token costs, and what the site adds.

Draw is *natural*: without a cap below rated power. Matrix products follow one law on every device (see
`costmodels.power.sustained`). Shares of rated power of the other phases are measured where a source measured
the device (see `costmodels/data/coefficients/power`); any other device takes the mean of the measured ones,
and the answer says so. Energy of a step is the sum over its parts of draw times time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.power.data import read_power_coefficients
from costmodels.power.sustained import sustained_draw
from hardware.device import Device
from hardware.errors import InputError, OutOfDomainError

__all__ = [
    "HOST_FRAC",
    "PHASES",
    "DevicePower",
    "Facility",
    "device_power",
    "energy_cost",
    "part_draw_frac",
    "serving_draw_w",
    "step_energy_j",
]

Floats = npt.NDArray[np.float64]

PHASES = ("matmul", "attention", "decode-attention", "experts", "launch-bound")
"""Kinds of work whose draw was measured; matrix products are those that fill a device."""
_FILLED = (0.5, 0.1)
"""Shares of rated arithmetic and memory traffic that such products reach at least."""

IDLE_FRAC = 0.12
"""Idle draw over rated power where the data sheet has none (assumed: H100 72 of 700 W, A100 58 of 400)."""
CONTEXT_W = 40.0
"""What a context adds to an idle device (26 to 66 W on A100, H100, L40S: arXiv 2605.23918)."""
COMM_FRAC = 0.4
"""Draw while collectives run alone, over rated power (assumed; no source measured it)."""
HOST_FRAC = 0.5
"""Mean draw of host, fans and network over the devices' rated power (assumed; DGX provision 0.8 to 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePower:
    """Natural draw of one device by phase."""

    device: str
    rated_w: float
    idle_w: float
    min_cap_w: float | None
    draw_frac: Mapping[str, float]
    """By phase, over rated power."""
    measured: bool
    """Whether the phases of this very device were measured."""
    by_shape: bool = False
    """Whether the draw of matrix products is that of a job's own, by how far they use the device."""

    @property
    def blocked_w(self) -> float:
        """Draw of a device that waits for others with its context loaded."""
        return min(self.idle_w + CONTEXT_W, self.rated_w)

    def natural_w(self, phase: str) -> float:
        """Return the natural draw of a phase. [W]"""
        return self.draw_frac[phase] * self.rated_w

    def check_cap(self, cap_w: float, *, key: str = "") -> None:
        """Refuse a cap that the device does not accept; `key` is where it was given.

        Raises
        ------
        InputError
            naming the range.
        """
        low = self.min_cap_w if self.min_cap_w is not None else self.idle_w
        if not low <= cap_w <= self.rated_w:
            where = f"{key}: " if key else ""
            message = (
                f"{where}a cap of {cap_w:g} W is outside what {self.device} accepts: "
                f"{low:g} to {self.rated_w:g} W"
            )
            raise InputError(message)


def device_power(device: Device) -> DevicePower:
    """Return what a device draws by phase.

    Raises
    ------
    OutOfDomainError
        if its rated power is not known.
    """
    if device.tdp_w is None:
        message = f"the rated power of {device.name} is not known; give tdp_w in its file"
        raise OutOfDomainError(message)
    families: dict[str, dict[str, float]] = read_power_coefficients("families")["draw_frac"]
    known = families.get(device.name, {})
    measured = (p for p in PHASES if p != "matmul")
    mean = {p: float(np.mean([f[p] for f in families.values() if p in f])) for p in measured}
    filled = {"matmul": float(sustained_draw().share(*_FILLED))}
    return DevicePower(
        device=device.name,
        rated_w=device.tdp_w,
        idle_w=device.idle_w if device.idle_w is not None else IDLE_FRAC * device.tdp_w,
        min_cap_w=device.min_power_cap_w,
        draw_frac=filled | mean | known,
        measured=bool(known),
    )


_PREFILL_SHARE = 0.3
"""Share of the time that an engine of both roles spends in prompts (assumed)."""


def serving_draw_w(power: DevicePower, role: str) -> float:
    """Return the mean draw of a busy device by role: prefill, decode or both. [W]"""
    prompt_w = max(power.natural_w("matmul"), power.natural_w("attention"))
    share = {"prefill": 1.0, "decode": 0.0}.get(role, _PREFILL_SHARE)
    return share * prompt_w + (1 - share) * power.natural_w("decode-attention")


_BUSY = ("forward", "backward", "recompute", "correction")
_WAITING = ("bubble", "host", "fixed")


def part_draw_frac(power: DevicePower, part: str) -> float:
    """Return the draw during one part of a training step, over rated power.

    Kernels draw as matrix products do, collectives a fixed share, a waiting device its blocked draw, the
    optimizer what memory-bound kernels do.
    """
    if part in _BUSY:
        return power.draw_frac["matmul"]
    if part in _WAITING:
        return power.blocked_w / power.rated_w
    return power.draw_frac["decode-attention"] if part == "optimizer" else COMM_FRAC


def step_energy_j(
    power: DevicePower,
    time_parts_s: Mapping[str, Floats] | Mapping[str, float],
    num_devices: int,
    *,
    cap_w: float | None = None,
) -> Floats:
    """Return the energy of all devices for one step, row by row; no part draws more than the cap. [J]"""
    most = 1.0 if cap_w is None else cap_w / power.rated_w
    columns = [
        min(part_draw_frac(power, name), most) * np.asarray(column, dtype=float)
        for name, column in time_parts_s.items()
    ]
    total: Floats = np.sum(columns, axis=0) * (power.rated_w * num_devices)
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Facility:
    """What a site adds to the draw of its devices, and what its electricity costs."""

    host_w_per_device: float
    """Share of the server beyond its devices, per device."""
    pue: float = 1.2
    """All power of the site over that of its servers (assumed)."""
    usd_per_j: float | None = None
    kg_co2_per_j: float | None = None

    def __post_init__(self) -> None:
        if self.pue < 1:
            message = f"facility.pue: {self.pue} is below 1; it is all power over computing power"
            raise InputError(message)

    def site_w(self, device_w: Floats | float, num_devices: int) -> Floats:
        """Return what the site draws when each of its devices draws `device_w`."""
        watts: Floats = (np.asarray(device_w) + self.host_w_per_device) * num_devices * self.pue
        return watts


def energy_cost(energy_j: float, facility: Facility) -> tuple[float | None, float | None]:
    """Return dollars and kilograms of CO2 of an energy that servers drew; None where unknown."""
    site_j = energy_j * facility.pue
    money = None if facility.usd_per_j is None else site_j * facility.usd_per_j
    carbon = None if facility.kg_co2_per_j is None else site_j * facility.kg_co2_per_j
    return money, carbon
