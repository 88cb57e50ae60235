"""Draw of matrix products by shape, as trees: fitted here, judged in the benchmark, read from files.

Formats of one group share trees.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.power.trees import FreeTrees, fit_free_trees

__all__ = ["DrawSettings", "ShapeDraw", "fit_shape_draw"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawSettings:
    """Size and number of the trees."""

    num_trees: int
    num_leaves: int
    learning_rate: float
    min_rows_per_leaf: int
    features_frac: float = 0.25
    num_seeds: int = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShapeDraw:
    """Fitted draw of a group of formats."""

    formats: tuple[str, ...]
    trees: tuple[FreeTrees, ...]
    """Their mean is the prediction."""

    def log_share(self, features: Floats) -> Floats:
        """Return ln(watts over rated power) of each product. shape (rows,)"""
        mean: Floats = np.mean([t.predict(features) for t in self.trees], axis=0)
        return mean

    def to_json(self) -> dict[str, Any]:
        """Return the group as a document."""
        return {"formats": list(self.formats), "trees": [t.to_json() for t in self.trees]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ShapeDraw":
        """Return a group written by `to_json`."""
        trees = tuple(FreeTrees.from_json(t) for t in data["trees"])
        return cls(formats=tuple(data["formats"]), trees=trees)


def fit_shape_draw(
    features: Floats, target: Floats, formats: tuple[str, ...], settings: DrawSettings
) -> ShapeDraw:
    """Return the draw fitted to `target`, ln(watts over rated power)."""
    trees = tuple(
        fit_free_trees(
            features,
            target,
            num_trees=settings.num_trees,
            num_leaves=settings.num_leaves,
            learning_rate=settings.learning_rate,
            min_rows_per_leaf=settings.min_rows_per_leaf,
            features_frac=settings.features_frac,
            seed=seed,
        )
        for seed in range(settings.num_seeds)
    )
    return ShapeDraw(formats=formats, trees=trees)
