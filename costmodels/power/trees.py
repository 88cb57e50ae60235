"""Boosted trees of free shape as flat arrays: fitted off-line by scikit-learn, evaluated here with numpy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.packed_arrays import pack, unpack

__all__ = ["FreeTrees", "fit_free_trees"]

Floats = npt.NDArray[np.float64]
_CHUNK_ROWS = 256
"""Rows walked together; few enough for their working set to stay in cache."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FreeTrees:
    """Trees laid end to end; the prediction is `offset` plus one leaf of every tree."""

    root: npt.NDArray[np.int64]
    """First node of every tree."""
    feature: npt.NDArray[np.int64]
    """Feature that a node compares; at a leaf 0."""
    threshold: npt.NDArray[np.float32]
    """Go right above it; at a leaf infinity."""
    left: npt.NDArray[np.int64]
    """Node to go to at or below the threshold; a leaf points to itself."""
    right: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]
    depth: int
    offset: float

    def predict(self, features: Floats) -> Floats:
        """Return the prediction of every row. features: shape (rows, features)"""
        out = np.full(len(features), self.offset)
        for start in range(0, len(features), _CHUNK_ROWS):
            rows = features[start : start + _CHUNK_ROWS].astype(np.float32)
            flat, origin = rows.ravel(), (np.arange(len(rows)) * rows.shape[1])[:, None]
            node = np.broadcast_to(self.root, (len(rows), len(self.root)))
            for _ in range(self.depth):
                low = flat.take(origin + self.feature.take(node)) <= self.threshold.take(node)
                node = np.where(low, self.left.take(node), self.right.take(node))
            out[start : start + _CHUNK_ROWS] += self.value.take(node).sum(axis=1, dtype=np.float64)
        return out

    def to_json(self) -> dict[str, Any]:
        """Return the arrays as compressed text."""
        own = np.arange(len(self.left))
        return {
            "num_nodes": len(self.left),
            "num_trees": len(self.root),
            "depth": self.depth,
            "offset": self.offset,
            "root": pack(self.root.astype("<i4")),
            "feature": pack(self.feature.astype(np.uint8)),
            "threshold": pack(self.threshold.astype("<f4")),
            "left": pack((self.left - own).astype("<i2")),
            "right": pack((self.right - own).astype("<i2")),
            "value": pack(self.value.astype("<f2")),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "FreeTrees":
        """Return trees written by `to_json`."""
        own = np.arange(int(data["num_nodes"]))
        return cls(
            root=unpack(data["root"], "<i4").astype(np.int64),
            feature=unpack(data["feature"], "u1").astype(np.int64),
            threshold=unpack(data["threshold"], "<f4").astype(np.float32),
            left=unpack(data["left"], "<i2").astype(np.int64) + own,
            right=unpack(data["right"], "<i2").astype(np.int64) + own,
            value=unpack(data["value"], "<f2").astype(np.float32),
            depth=int(data["depth"]),
            offset=float(data["offset"]),
        )


def fit_free_trees(
    features: Floats,
    target: Floats,
    *,
    num_trees: int,
    num_leaves: int,
    learning_rate: float,
    min_rows_per_leaf: int,
    features_frac: float,
    smoothing: float | None = None,
    seed: int = 0,
) -> FreeTrees:
    """Return boosted trees for `target`, exported from scikit-learn as plain arrays.

    Parameters
    ----------
    smoothing : None for least squares; otherwise `target` is a logarithm and the mean relative error is
        least, its corner rounded below this error.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor  # slow to import, needed for fitting only

    from costmodels.relative_error import RelativeError  # imports scikit-learn

    model = HistGradientBoostingRegressor(
        loss="squared_error" if smoothing is None else RelativeError(smoothing),
        max_iter=num_trees,
        max_leaf_nodes=num_leaves,
        learning_rate=learning_rate,
        min_samples_leaf=min_rows_per_leaf,
        max_features=features_frac,
        early_stopping=False,
        random_state=seed,
    )
    model.fit(features.astype(np.float32), target)
    stages = [stage[0].nodes for stage in model._predictors]
    sizes = [len(nodes) for nodes in stages]
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    shift = np.repeat(start, sizes)
    nodes = np.concatenate(stages)
    leaf = nodes["is_leaf"].astype(bool)
    own = np.arange(len(nodes))
    return FreeTrees(
        root=start,
        feature=np.where(leaf, 0, nodes["feature_idx"]).astype(np.int64),
        threshold=np.where(leaf, np.inf, nodes["num_threshold"]).astype(np.float32),
        left=np.where(leaf, own, nodes["left"] + shift).astype(np.int64),
        right=np.where(leaf, own, nodes["right"] + shift).astype(np.int64),
        value=nodes["value"].astype(np.float32),
        depth=int(nodes["depth"].max()),
        offset=float(np.ravel(model._baseline_prediction)[0]),
    )
