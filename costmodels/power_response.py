r"""How work slows and power falls when a device is capped or its clock is held down.

Two responses, both relative to the device left alone.

*Cap.* With p the natural draw and c the cap, both over rated power, and s the static share that no clock
lowers:

.. math:: r = (c - s) / (p - s), \qquad throughput = (1 + r^{-e n})^{-1/n}

A cap far above the natural draw binds nothing (throughput 1); far below it throughput falls as r to the e.
The sharpness n rounds the corner, because draw fluctuates around its mean and a cap bites its peaks first.

*Clock.* With x the clock over its maximum and k the share of the time that scales with the clock:

.. math:: t = t_0 (k / x + 1 - k), \qquad P = P_s + (P_0 - P_s)\, x \max(x, v)^2

where v is the clock below which the voltage no longer falls.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.power_data import read_power_coefficients
from hardware.errors import OutOfDomainError

__all__ = [
    "CapResponse",
    "ClockResponse",
    "cap_names",
    "cap_response",
    "fit_cap_responses",
    "inert_cap",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LEAST_RATIO = 1e-4
"""Draw ratio below which the cap response is held: nothing runs there."""
EFFICIENT_FLOOR_FRAC = 0.5
"""Below this share of rated power energy rises again (0.50 to 0.58 in the Zeus traces, NSDI 2023)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapResponse:
    """What a power cap does to the work of one kind of device."""

    device: str
    static_frac: float
    """Power that no clock lowers, over rated power."""
    exponent: float
    sharpness: float
    log_sigma: float
    """Spread of ln(measured / predicted throughput) on networks held out of the fit."""
    measured: bool
    """Whether the device itself was measured, or the response is that of all measured ones."""

    def throughput_frac(self, cap_frac: Floats | float, natural_frac: Floats | float) -> Floats:
        """Return throughput under the cap over throughput without one.

        Parameters
        ----------
        cap_frac, natural_frac : cap and natural (uncapped) draw, both over rated power.
        """
        above = np.maximum(np.asarray(natural_frac, dtype=float) - self.static_frac, _LEAST_RATIO)
        left = np.asarray(cap_frac, dtype=float) - self.static_frac
        ratio = np.maximum(left / above, _LEAST_RATIO)
        frac: Floats = (1.0 + ratio ** (-self.exponent * self.sharpness)) ** (-1.0 / self.sharpness)
        return frac

    def cap_for(self, throughput_frac: float, natural_frac: float) -> float:
        """Return the smallest cap, over rated power, that keeps `throughput_frac` of the throughput."""
        if not 0 < throughput_frac < 1:
            message = f"throughput_frac {throughput_frac} is not between 0 and 1 (both excluded)"
            raise OutOfDomainError(message)
        low, high = self.static_frac, 4.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            if float(self.throughput_frac(middle, natural_frac)) < throughput_frac:
                low = middle
            else:
                high = middle
        return high


def inert_cap(cap_w: Floats | float, natural_w: Floats | float) -> npt.NDArray[np.bool_]:
    """Return whether a cap binds nothing: it lies a tenth or more above the natural draw."""
    inert: npt.NDArray[np.bool_] = np.asarray(cap_w, dtype=float) >= 1.1 * np.asarray(natural_w, dtype=float)
    return inert


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockResponse:
    """What a locked clock does to the time and the power of one phase."""

    clock_share: float
    """Share of the time that scales with the clock: near 1 for large matrix products, near 0 for decode."""
    static_frac: float
    """Power that no clock lowers, over the natural draw."""
    voltage_floor: float = 0.7
    """Clock over its maximum below which the voltage no longer falls (assumed)."""

    def time_frac(self, clock_frac: Floats | float) -> Floats:
        """Return time at the clock over time at the full clock."""
        x = np.asarray(clock_frac, dtype=float)
        frac: Floats = self.clock_share / x + 1.0 - self.clock_share
        return frac

    def power_frac(self, clock_frac: Floats | float) -> Floats:
        """Return draw at the clock over the natural draw."""
        x = np.asarray(clock_frac, dtype=float)
        frac: Floats = (
            self.static_frac + (1.0 - self.static_frac) * x * np.maximum(x, self.voltage_floor) ** 2
        )
        return frac


@cache
def _shipped() -> Mapping[str, CapResponse]:
    document = read_power_coefficients("cap_response")
    return {
        name: CapResponse(
            device=name,
            static_frac=float(row["static_frac"]),
            exponent=float(row["exponent"]),
            sharpness=float(document["sharpness"]),
            log_sigma=float(row["log_sigma"]),
            measured=name != "any",
        )
        for name, row in document["devices"].items()
    }


def cap_names() -> tuple[str, ...]:
    """Return the devices whose response to caps was measured."""
    return tuple(sorted(n for n in _shipped() if n != "any"))


_FAMILY = {"v100": "v100", "a40": "a40", "p100": "p100", "rtx-6000": "rtx-6000"}


def cap_response(device_name: str) -> CapResponse:
    """Return the response of a device, or that of all measured devices together, marked as such."""
    shipped = _shipped()
    family = next((f for f in _FAMILY if device_name == f or device_name.startswith(f"{f}-")), "any")
    return shipped[_FAMILY.get(family, "any")]


def _responses(point: Floats, device: Ints, cap_frac: Floats, natural_frac: Floats) -> Floats:
    num = (len(point) - 1) // 2
    static, exponent, sharpness = point[:num][device], point[num:-1][device], abs(float(point[-1]))
    above = np.maximum(natural_frac - static, _LEAST_RATIO)
    ratio = np.maximum((cap_frac - static) / above, _LEAST_RATIO)
    predicted: Floats = (1.0 + ratio ** (-exponent * sharpness)) ** (-1.0 / sharpness)
    return predicted


def fit_cap_responses(
    device: Ints,
    cap_frac: Floats,
    natural_frac: Floats,
    throughput_frac: Floats,
    *,
    spread_weight: float = 5e-4,
) -> tuple[Floats, Floats, float]:
    """Return static share and exponent of every device, and the sharpness they share.

    Minimises the mean relative error of throughput; `spread_weight` draws the exponents together.

    Parameters
    ----------
    device : index of the device of every sample, from 0.
    cap_frac, natural_frac : cap and draw at the highest cap, over rated power.
    throughput_frac : throughput over that at the highest cap.
    """
    from scipy import optimize  # slow to import, needed for fitting only

    minimize: Any = optimize.minimize
    num = int(device.max()) + 1

    def loss(point: Floats) -> float:
        if (point < 0).any() or (point[:num] > 0.6).any():
            return 10.0
        error = _responses(point, device, cap_frac, natural_frac) / throughput_frac - 1.0
        return float(np.abs(error).mean() + spread_weight * np.var(np.log(point[num:-1] + 1e-3)))

    start = np.concatenate([np.full(num, 0.3), np.full(num, 0.3), [25.0]])
    options = {"maxiter": 40, "xtol": 1e-3, "ftol": 1e-6}
    first = minimize(loss, start, method="Powell", options=options)
    best = minimize(loss, first.x, method="Nelder-Mead", options={"maxiter": 2000, "xatol": 1e-4})
    return best.x[:num], best.x[num:-1], float(best.x[-1])
