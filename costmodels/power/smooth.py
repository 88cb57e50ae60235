"""A smooth function of many features: ridge regression on random Fourier features, as plain arrays.

The cosines and sines of random projections span what a Gaussian kernel spans (Rahimi and Recht, Random
Features for Large-Scale Kernel Machines, NIPS 2007), so the fit varies slowly between samples and needs none
of them afterwards. Unlike trees it has no steps; the mean of both is better than either where samples are
few.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.packed_arrays import pack, unpack

__all__ = ["SmoothFunction", "fit_smooth"]

Floats = npt.NDArray[np.float64]
_FARTHEST = 4.0
"""Standardised features are held within this range: beyond it nothing was seen."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SmoothFunction:
    """A fitted function; features are standardised, projected, and their waves weighed."""

    centre: Floats
    scale: Floats
    projection: Floats
    """shape (features, waves)"""
    weight: Floats
    """Of the cosines, then of the sines. shape (2 waves,)"""
    offset: float
    low: float
    high: float
    """Range of the targets; predictions stay within."""

    def predict(self, features: Floats) -> Floats:
        """Return the prediction of every row. features: shape (rows, features)"""
        inside = np.clip((features - self.centre) / self.scale, -_FARTHEST, _FARTHEST)
        value = _waves(inside, self.projection) @ self.weight + self.offset
        bounded: Floats = np.clip(value, self.low, self.high)
        return bounded

    def to_json(self) -> dict[str, Any]:
        """Return the arrays as compressed text."""
        plain = {"offset": self.offset, "low": self.low, "high": self.high}
        arrays = {name: pack(getattr(self, name).astype("<f4")) for name in _ARRAYS}
        return arrays | plain

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "SmoothFunction":
        """Return a function written by `to_json`."""
        centre, scale, projection, weight = (unpack(data[n], "<f4").astype(np.float64) for n in _ARRAYS)
        return cls(
            centre=centre,
            scale=scale,
            projection=projection.reshape(len(centre), -1),
            weight=weight,
            offset=float(data["offset"]),
            low=float(data["low"]),
            high=float(data["high"]),
        )


_ARRAYS = ("centre", "scale", "projection", "weight")


def _waves(inside: Floats, projection: Floats) -> Floats:
    phase = inside @ projection
    waves: Floats = np.hstack([np.cos(phase), np.sin(phase)]) / np.sqrt(projection.shape[1])
    return waves


def fit_smooth(
    features: Floats,
    target: Floats,
    *,
    width: float = 5.0,
    ridge: float = 0.1,
    num_waves: int = 1000,
    seed: int = 0,
) -> SmoothFunction:
    """Return the smooth function nearest to `target`.

    Parameters
    ----------
    width : distance, in standard deviations of the features, over which the function varies.
    ridge : weight of the squared coefficients against the squared errors.
    """
    centre, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    inside = np.clip((features - centre) / scale, -_FARTHEST, _FARTHEST)
    projection = np.random.default_rng(seed).normal(size=(features.shape[1], num_waves)) / width
    waves, offset = _waves(inside, projection), float(target.mean())
    # as many unknowns as samples at most: solve for the samples' multipliers
    gram = waves @ waves.T + ridge * np.eye(len(target))
    weight = waves.T @ np.linalg.solve(gram, target - offset)
    return SmoothFunction(
        centre=centre,
        scale=scale,
        projection=projection,
        weight=weight,
        offset=offset,
        low=float(target.min()),
        high=float(target.max()),
    )
