"""A smooth function of many features: kernel regression around a few centres, as plain arrays.

The function is a weighted sum of one kernel around each centre (the subset of regressors of Rasmussen and
Williams, Gaussian Processes for Machine Learning, 2006, section 8.3.1; centres by k-means after Zhang, Tsang
and Kwok, Improved Nystrom Low-Rank Approximation, ICML 2008), so it needs none of the samples once fitted.
The kernel is a Matern kernel of smoothness 3/2 (the same book, eq. 4.17): measured figures bend more sharply
than a Gaussian kernel lets them. It has no steps, unlike trees, which tells where samples are few.
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
_JITTER = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SmoothFunction:
    """A fitted function; features are standardised and compared with every centre."""

    centre: Floats
    """Of the features. shape (features,)"""
    scale: Floats
    """Of the features. shape (features,)"""
    anchors: Floats
    """Centres of the kernels, standardised. shape (anchors, features)"""
    weight: Floats
    """Of the kernels. shape (anchors,)"""
    width: float
    offset: float
    low: float
    high: float
    """Range of the targets; predictions stay within."""

    def predict(self, features: Floats) -> Floats:
        """Return the prediction of every row. features: shape (rows, features)"""
        inside = np.clip((features - self.centre) / self.scale, -_FARTHEST, _FARTHEST)
        value = _kernel(inside, self.anchors, self.width) @ self.weight + self.offset
        bounded: Floats = np.clip(value, self.low, self.high)
        return bounded

    def to_json(self) -> dict[str, Any]:
        """Return the arrays as compressed text."""
        plain = {name: getattr(self, name) for name in _NUMBERS}
        arrays = {name: pack(getattr(self, name).astype("<f4")) for name in _ARRAYS}
        return arrays | plain

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "SmoothFunction":
        """Return a function written by `to_json`."""
        centre, scale, anchors, weight = (unpack(data[n], "<f4").astype(np.float64) for n in _ARRAYS)
        return cls(
            centre=centre,
            scale=scale,
            anchors=anchors.reshape(-1, len(centre)),
            weight=weight,
            width=float(data["width"]),
            offset=float(data["offset"]),
            low=float(data["low"]),
            high=float(data["high"]),
        )


_ARRAYS = ("centre", "scale", "anchors", "weight")
_NUMBERS = ("width", "offset", "low", "high")


def _kernel(left: Floats, right: Floats, width: float) -> Floats:
    """Return the Matern kernel of smoothness 3/2 between rows. shape (left, right)"""
    square = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2.0 * left @ right.T
    far = np.sqrt(3.0 * np.maximum(square, 0.0)) / width
    near: Floats = (1.0 + far) * np.exp(-far)
    return near


def fit_smooth(
    features: Floats,
    target: Floats,
    *,
    width: float = 8.0,
    ridge: float = 0.05,
    num_anchors: int = 400,
    seed: int = 0,
) -> SmoothFunction:
    """Return the smooth function nearest to `target`.

    Parameters
    ----------
    width : distance, in standard deviations of the features, over which the function varies.
    ridge : variance of one measurement over that of the function.
    num_anchors : kernels; never more than distinct rows.
    """
    from sklearn.cluster import KMeans  # slow to import, needed for fitting only

    centre, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    inside = np.clip((features - centre) / scale, -_FARTHEST, _FARTHEST)
    num_anchors = min(num_anchors, len(np.unique(inside, axis=0)))
    anchors = KMeans(num_anchors, n_init=1, random_state=seed).fit(inside).cluster_centers_
    seen, offset = _kernel(inside, anchors, width), float(target.mean())
    between = ridge * _kernel(anchors, anchors, width) + _JITTER * np.eye(num_anchors)
    weight = np.linalg.solve(seen.T @ seen + between, seen.T @ (target - offset))
    return SmoothFunction(
        centre=centre,
        scale=scale,
        anchors=anchors,
        weight=weight.astype(np.float64),
        width=width,
        offset=offset,
        low=float(target.min()),
        high=float(target.max()),
    )
