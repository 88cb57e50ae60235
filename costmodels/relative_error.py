"""Mean relative error as a loss of scikit-learn's boosted trees; imported where trees are fitted only.

The trees predict a logarithm, r for a measured y, and are judged by |exp(r - y) - 1|: an answer twice too
high costs more than one twice too low, and a few stray readings pull no harder than all others. Near its
minimum the loss is rounded, sqrt(u^2 + s^2) with u = exp(r - y) - 1, so that it has a Newton step. Instead of
its second derivative, which turns negative far away, the step uses that of the parabola which touches the
rounded root from above (the majorisation of Hunter and Lange, The American Statistician 58, 2004).
"""

import numpy as np
import numpy.typing as npt
from sklearn._loss.loss import HalfSquaredError

__all__ = ["RelativeError"]

Floats = npt.NDArray[np.float64]
_FARTHEST = 3.0
"""Logarithms further apart than this pull as if they were this far apart."""


class RelativeError(HalfSquaredError):  # type: ignore[misc]
    """The loss |exp(prediction - target) - 1|, rounded below `smoothing`."""

    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.constant_hessian = False

    def init_gradient_and_hessian(
        self, n_samples: int, dtype: type = np.float64, order: str = "F"
    ) -> tuple[Floats, Floats]:
        """Return room for the derivatives."""
        del order
        return np.empty(n_samples, dtype=dtype), np.empty(n_samples, dtype=dtype)

    def gradient_hessian(
        self,
        y_true: Floats,
        raw_prediction: Floats,
        sample_weight: Floats | None = None,
        gradient_out: Floats | None = None,
        hessian_out: Floats | None = None,
        n_threads: int = 1,
    ) -> tuple[Floats, Floats]:
        """Return slope and curvature by the prediction of each row, times the smoothing."""
        del n_threads
        ratio = np.exp(np.clip(np.ravel(raw_prediction) - y_true, -_FARTHEST, _FARTHEST))
        scale = (1.0 if sample_weight is None else sample_weight) * self.smoothing
        scale = scale * ratio / np.hypot(ratio - 1.0, self.smoothing)
        gradient = np.empty_like(y_true) if gradient_out is None else gradient_out
        hessian = np.empty_like(y_true) if hessian_out is None else hessian_out
        gradient[...], hessian[...] = scale * (ratio - 1.0), scale * ratio
        return gradient, hessian

    def fit_intercept_only(self, y_true: Floats, sample_weight: Floats | None = None) -> np.float64:
        """Return where the trees start."""
        del sample_weight
        return np.float64(np.median(y_true))
