"""One fitted surface: physics with coefficients, a learned correction inside the fitted box, and its error.

Inside the box that the samples span, ``t = physics * exp(correction)``; outside it the correction fades as
``exp(-excess)``, where the excess is the sum over columns of the log distance to the box, and the error grows
from the one measured on held-out shapes towards that of physics alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.intervals import Z90
from costmodels.kernels.machine import Coefficients, Family, Floats, Format, Machine, Shape
from costmodels.kernels.trees import Trees

__all__ = ["KernelTime", "Surface", "box_columns", "own_features"]

_SMALLEST = 0.5
"""Zero columns (no window, no mask) stand here on the log axis."""
_MAX_LOG_SIGMA = 1.2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelTime:
    """Predicted seconds of kernels and how sure they are."""

    seconds: Floats
    log_sigma: Floats
    """Standard deviation of the logarithm of measured over predicted."""

    def interval_s(self) -> tuple[Floats, Floats]:
        """Return the bounds that hold 90 % of measurements."""
        spread = np.exp(Z90 * self.log_sigma)
        return self.seconds / spread, self.seconds * spread


def box_columns(family: Family, shape: Shape) -> Floats:
    """Return the log columns that the fitted box is drawn in. shape (rows, columns)"""
    columns = [np.log(np.maximum(shape[c], _SMALLEST)) for c in family.columns]
    if "q_len" in shape:
        columns.append(np.log(shape["kv_len"] / shape["q_len"]))
    return np.stack(columns, axis=1)


def own_features(family: Family, shape: Shape, machine: Machine, fmt: Format, *, own: bool = True) -> Floats:
    """Return the inputs of a correction: the family's, and whether the row is of the device itself.

    Fits may add samples of a sibling device, at less weight; predictions are always for the device itself.
    """
    features = family.features(shape, machine, fmt)
    return np.column_stack([features, np.full(len(features), float(own))])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Surface:
    """Coefficients of one family and number format on one device."""

    family: Family
    fmt: Format
    coefficients: Coefficients
    machine: Machine
    """The rated machine that the samples come from; the correction is a function of the shape on it."""
    measured: bool
    physics_log_sigma: float
    box_low: Floats
    box_high: Floats
    trees: Trees | None = None
    sigma_log_s: Floats
    """Knots: log of the predicted seconds."""
    sigma: Floats
    """Held-out standard deviation at the knots."""

    def predict(self, shape: Shape, machine: Machine, fmt: Format, *, steady: bool = False) -> KernelTime:
        """Return seconds on `machine` (the measured one, or one that resembles it).

        Parameters
        ----------
        steady : the kernel as it runs inside a captured step: no host between launches.
        """
        coefficients = {**self.coefficients, "host_s": 0.0} if steady else self.coefficients
        seconds = self.family.physics(shape, machine, fmt, coefficients)
        weight = self.trust(shape)
        if self.trees is not None:
            correction = self.trees.predict(own_features(self.family, shape, self.machine, self.fmt))
            if steady and self.coefficients.get("host_s", 0.0) > 0.0:
                bound = self.family.physics(shape, self.machine, self.fmt, self.coefficients)
                correction = correction * np.clip(
                    np.log(bound / self.coefficients["host_s"]) / np.log(2.0), 0.0, 1.0
                )
            seconds = seconds * np.exp(weight * correction)
        fitted = np.interp(np.log(seconds), self.sigma_log_s, self.sigma)
        wide = np.minimum(self.physics_log_sigma * (2.0 - weight), _MAX_LOG_SIGMA)
        return KernelTime(seconds=seconds, log_sigma=weight * fitted + (1.0 - weight) * wide)

    def trust(self, shape: Shape) -> Floats:
        """Return 1 inside the fitted box, falling to 0 outside it."""
        columns = box_columns(self.family, shape)
        excess = np.maximum(columns - self.box_high, 0.0) + np.maximum(self.box_low - columns, 0.0)
        return np.asarray(np.exp(-excess.sum(axis=1)), dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Return the surface without its provenance."""
        return {
            "coefficients": {k: float(f"{v:.5g}") for k, v in self.coefficients.items()},
            "physics_log_sigma": round(self.physics_log_sigma, 4),
            "box_low": [round(float(v), 4) for v in self.box_low],
            "box_high": [round(float(v), 4) for v in self.box_high],
            "sigma_log_s": [round(float(v), 3) for v in self.sigma_log_s],
            "sigma": [round(float(v), 4) for v in self.sigma],
            "trees": None if self.trees is None else self.trees.to_json(),
        }

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], *, family: Family, fmt: Format, machine: Machine, measured: bool
    ) -> "Surface":
        """Return a surface written by `to_json`."""
        return cls(
            family=family,
            fmt=fmt,
            coefficients=dict(data["coefficients"]),
            machine=machine,
            measured=measured,
            physics_log_sigma=float(data["physics_log_sigma"]),
            box_low=np.asarray(data["box_low"], dtype=np.float64),
            box_high=np.asarray(data["box_high"], dtype=np.float64),
            trees=None if data["trees"] is None else Trees.from_json(data["trees"]),
            sigma_log_s=np.asarray(data["sigma_log_s"], dtype=np.float64),
            sigma=np.asarray(data["sigma"], dtype=np.float64),
        )
