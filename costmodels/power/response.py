r"""How work slows and power falls when a device is capped or its clock is held down.

*Clock.* With x the clock over its maximum and k the share of the time that scales with the clock:

.. math:: t = t_0 (k / x + 1 - k), \qquad P = P_s + (P_0 - P_s)\, x \max(x, v)^2

where P_s is the static power that no clock lowers and v the clock below which the voltage no longer falls.

*Cap.* The device lowers its clock until its draw is the cap, so with p the natural draw, c the cap and s the
static power, all over rated power, throughput follows from the same law with k = 1:

.. math:: r = (c - s) / (p - s), \qquad x(r) = r^{1/3} \; (r \ge v^3), \quad r / v^2 \; (r < v^3)

and 1 where r exceeds 1. Draw is no constant: kernels differ, so p is spread evenly over a band of fixed width
around its mean, and time is the mean over the band. A cap bites the hot kernels first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.power.data import read_power_coefficients

__all__ = [
    "CapFit",
    "CapResponse",
    "ClockResponse",
    "cap_names",
    "cap_response",
    "fit_cap_responses",
    "inert_cap",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LEAST_RATIO = 1e-3
"""Ratio of draws below which the cap response is held: nothing runs there."""
_BAND = np.array([-1.5, -0.9, -0.3, 0.3, 0.9, 1.5])
"""Where in the band of natural draw the response is evaluated, in units of its spread."""
_LEAST_DRAW, _MOST_DRAW = 0.05, 1.3
"""Bounds of the band, over rated power."""
_STATIC_FRAC = {
    **dict.fromkeys(("a100-40gb", "a100-80gb", "a800-80gb"), 80.0 / 400.0),
    **dict.fromkeys(("h100", "h200", "h800"), 121.7 / 700.0),
}
"""Draw of an idle device that holds a context, over rated power (A100 and H100, arXiv 2605.23918)."""
_RECENT_VOLTAGE_FLOOR = 0.7
"""Of those devices, assumed: an H100 at half power then keeps the 0.77 of its prompt speed that Splitwise's
released tables say (arXiv 2311.18677), an A100 at 0.8 of its draw the 0.90 of POLCA's training runs (arXiv
2308.12908). With the floor of the older devices it would be 0.69 and 0.90."""
EFFICIENT_FLOOR_FRAC = 0.5
"""Below this share of rated power energy rises again (0.50 to 0.58 in the Zeus traces, NSDI 2023)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapResponse:
    """What a power cap does to the work of one kind of device."""

    device: str
    static_frac: float
    """Power that no clock lowers, over rated power."""
    voltage_floor: float
    """Clock over its maximum below which the voltage no longer falls."""
    spread_frac: float
    """Spread of the natural draw around its mean, over rated power."""
    log_sigma: float
    """Spread of ln(measured / predicted throughput) on work that took no part in the fit."""
    measured: bool
    """Whether the device itself was measured, or the response is that of all measured ones."""
    published: bool = False
    """Whether static power and voltage floor come from single published figures of the device."""

    def throughput_frac(self, cap_frac: Floats | float, natural_frac: Floats | float) -> Floats:
        """Return throughput under the cap over throughput at rated power.

        Parameters
        ----------
        cap_frac, natural_frac : cap and natural (uncapped) draw, both over rated power.
        """
        cap, natural = np.broadcast_arrays(
            np.asarray(cap_frac, dtype=float), np.asarray(natural_frac, dtype=float)
        )
        return _throughput_frac(cap, natural, self.static_frac, self.voltage_floor, self.spread_frac)


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


def _throughput_frac(
    cap_frac: Floats,
    natural_frac: Floats,
    static: Floats | float,
    voltage_floor: Floats | float,
    spread: float,
) -> Floats:
    static, floor = np.asarray(static)[..., None], np.asarray(voltage_floor)[..., None]
    natural = np.clip(natural_frac[..., None] + spread * _BAND, _LEAST_DRAW, _MOST_DRAW)

    def slowdown(cap: Floats) -> Floats:
        left = (cap[..., None] - static) / np.maximum(natural - static, 1e-4)
        ratio = np.clip(left, _LEAST_RATIO, 1.0)
        clock = np.where(ratio > floor**3, np.cbrt(ratio), ratio / floor**2)
        mean: Floats = (1.0 / clock).mean(axis=-1)
        return mean

    frac: Floats = slowdown(np.ones_like(cap_frac)) / slowdown(np.minimum(cap_frac, 1.0))
    return frac


@cache
def _shipped() -> Mapping[str, CapResponse]:
    document = read_power_coefficients("cap_response")
    return {
        name: CapResponse(
            device=name,
            static_frac=float(row["static_frac"]),
            voltage_floor=float(row["voltage_floor"]),
            spread_frac=float(row["spread_frac"]),
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
    """Return the response of a device, or that of all measured devices together, marked as such.

    Where single figures of a device were published, they replace what those devices have in common.
    """
    shipped = _shipped()
    if device_name in _STATIC_FRAC:
        return replace(
            shipped["any"],
            static_frac=_STATIC_FRAC[device_name],
            voltage_floor=_RECENT_VOLTAGE_FLOOR,
            published=True,
        )
    family = next((f for f in _FAMILY if device_name == f or device_name.startswith(f"{f}-")), "any")
    return shipped[_FAMILY.get(family, "any")]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CapFit:
    """Responses fitted together: one static share and voltage floor per device, one spread for all."""

    static_frac: Floats
    voltage_floor: Floats
    spread_frac: float

    def throughput_frac(self, device: Ints, cap_frac: Floats, natural_frac: Floats) -> Floats:
        """Return the throughput of samples of devices given by index."""
        return _throughput_frac(
            cap_frac, natural_frac, self.static_frac[device], self.voltage_floor[device], self.spread_frac
        )


def fit_cap_responses(
    device: Ints,
    cap_frac: Floats,
    natural_frac: Floats,
    throughput_frac: Floats,
    *,
    shrink: float = 0.02,
) -> CapFit:
    """Return responses that make the mean relative error of throughput least.

    Parameters
    ----------
    device : index of the device of every sample, from 0.
    cap_frac, natural_frac : cap and draw at the highest cap, over rated power.
    throughput_frac : throughput over that at the highest cap.
    shrink : weight of the variance over devices, which draws their coefficients together.
    """
    from scipy import optimize  # slow to import, needed for fitting only

    minimize: Any = optimize.minimize
    num = int(device.max()) + 1

    def decoded(point: Floats) -> CapFit:
        static, floor = 0.6 / (1 + np.exp(-point[:num])), 0.3 + 0.7 / (1 + np.exp(-point[num:-1]))
        return CapFit(static_frac=static, voltage_floor=floor, spread_frac=float(np.exp(point[-1])))

    def loss(point: Floats) -> float:
        predicted = decoded(point).throughput_frac(device, cap_frac, natural_frac)
        error = predicted / throughput_frac - 1.0
        pooled = np.var(point[:num]) + np.var(point[num:-1])
        return float(np.sqrt(error**2 + 1e-4).mean() + shrink * pooled)

    start = np.concatenate([np.zeros(2 * num), [-2.0]])
    best = minimize(loss, start, method="L-BFGS-B", options={"maxiter": 300})
    return decoded(best.x)
