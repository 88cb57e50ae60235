"""Draw of matrix products by shape, as trees: fitted here, judged in the benchmark, read from files.

Formats of one group share trees. Where a source's sessions drift, trees of a second round predict from the
same features, the first round's prediction and the drift of the neighbouring readings from it; what they
learn from are predictions of first-round trees that did not see the weight shape (n, k).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.power.session import SessionDrift, fit_session, others_drift
from costmodels.power.trees import FreeTrees, fit_free_trees

__all__ = ["DrawSettings", "ShapeDraw", "Shapes", "fit_shape_draw"]

Floats = npt.NDArray[np.float64]
_INNER_FOLDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawSettings:
    """Size of the trees, and whether the source's sessions drift."""

    num_trees: int
    num_leaves: int
    learning_rate: float
    min_rows_per_leaf: int
    features_frac: float = 0.25
    l2: float = 0.0
    num_seeds: int = 2
    drifts: bool = False


_SECOND = DrawSettings(
    num_trees=250, num_leaves=63, learning_rate=0.08, min_rows_per_leaf=5, features_frac=0.4, l2=1.0
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shapes:
    """Products: their features, their sizes, and the index of each one's format in its group."""

    features: Floats
    m: Floats
    n: Floats
    k: Floats
    group: npt.NDArray[np.int64]

    def weight_shape(self) -> npt.NDArray[np.int64]:
        """Return an index of (n, k) per row."""
        _, index = np.unique(np.stack([self.n, self.k]), axis=1, return_inverse=True)
        return index.ravel()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShapeDraw:
    """Fitted draw of a group of formats."""

    formats: tuple[str, ...]
    trees: tuple[FreeTrees, ...]
    """Their mean is the prediction."""
    session: SessionDrift | None = None
    second: tuple[FreeTrees, ...] = ()
    """Where there is a session their mean is, from the features, the drift and the first prediction."""

    def log_share(self, shapes: Shapes) -> Floats:
        """Return ln(watts over rated power) of each product."""
        first = _mean(self.trees, shapes.features)
        if self.session is None:
            return first
        drift = self.session.features(shapes.group, shapes.m, shapes.n, shapes.k)
        return _mean(self.second, np.column_stack([shapes.features, drift, first]))

    def to_json(self) -> dict[str, Any]:
        """Return the group as a document."""
        return {
            "formats": list(self.formats),
            "trees": [t.to_json() for t in self.trees],
            "session": None if self.session is None else self.session.to_json(),
            "second": [t.to_json() for t in self.second],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ShapeDraw":
        """Return a group written by `to_json`."""
        return cls(
            formats=tuple(data["formats"]),
            trees=tuple(FreeTrees.from_json(t) for t in data["trees"]),
            session=None if data["session"] is None else SessionDrift.from_json(data["session"]),
            second=tuple(FreeTrees.from_json(t) for t in data["second"]),
        )


def _mean(trees: tuple[FreeTrees, ...], features: Floats) -> Floats:
    mean: Floats = np.mean([t.predict(features) for t in trees], axis=0)
    return mean


def _fit(features: Floats, target: Floats, settings: DrawSettings, num_seeds: int) -> tuple[FreeTrees, ...]:
    return tuple(
        fit_free_trees(
            features,
            target,
            num_trees=settings.num_trees,
            num_leaves=settings.num_leaves,
            learning_rate=settings.learning_rate,
            min_rows_per_leaf=settings.min_rows_per_leaf,
            features_frac=settings.features_frac,
            l2=settings.l2,
            seed=seed,
        )
        for seed in range(num_seeds)
    )


def _unseen(shapes: Shapes, target: Floats, settings: DrawSettings) -> Floats:
    """Return first-round predictions by trees that saw no row of the same weight shape."""
    weight_shape = shapes.weight_shape()
    fold = (np.random.default_rng(7).permutation(weight_shape.max() + 1) % _INNER_FOLDS)[weight_shape]
    out = np.zeros(len(target))
    for i in range(_INNER_FOLDS):
        trees = _fit(shapes.features[fold != i], target[fold != i], settings, 1)
        out[fold == i] = _mean(trees, shapes.features[fold == i])
    return out


def fit_shape_draw(
    shapes: Shapes, target: Floats, formats: tuple[str, ...], settings: DrawSettings
) -> ShapeDraw:
    """Return the draw fitted to `target`, ln(watts over rated power)."""
    if not settings.drifts:
        trees = _fit(shapes.features, target, settings, settings.num_seeds)
        return ShapeDraw(formats=formats, trees=trees)
    usual = _unseen(shapes, target, settings)
    readings = shapes.group, shapes.m, shapes.n, shapes.k, target - usual
    features = np.column_stack([shapes.features, others_drift(*readings), usual])
    return ShapeDraw(
        formats=formats,
        trees=_fit(shapes.features, target, settings, 1),
        session=fit_session(*readings),
        second=_fit(features, target, _SECOND, settings.num_seeds),
    )
