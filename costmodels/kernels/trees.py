"""A boosted-tree correction as plain arrays: fitted off-line by scikit-learn, evaluated here with numpy.

Every tree is stored as a complete binary tree of one depth; a branch that ended early repeats its value.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.packed_arrays import pack, unpack

__all__ = ["Trees"]

Floats = npt.NDArray[np.float64]
_CHUNK_ROWS = 128
"""Rows walked together; few enough for their working set to stay in cache."""


def _distinct(rows: Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return one row of each kind and where every row finds its own: tables of strategies repeat shapes.

    Rows are told apart by a weighted sum with irrational weights; that no two kinds share one is checked.
    """
    weights = np.sqrt(np.arange(2.0, rows.shape[1] + 2.0))
    _, first, inverse = np.unique((rows * weights).sum(axis=1), return_index=True, return_inverse=True)
    if np.array_equal(rows[first][inverse], rows):
        return first, inverse
    each = np.arange(len(rows))
    return each, each


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trees:
    """Complete binary trees; the prediction is `offset` plus the sum of one leaf per tree."""

    feature: npt.NDArray[np.int64]
    """Feature that a node compares. shape (trees, nodes), breadth first"""
    threshold: npt.NDArray[np.float32]
    """Go right above it. shape (trees, nodes)"""
    value: Floats
    """shape (trees, leaves)"""
    offset: float

    def predict(self, features: Floats) -> Floats:
        """Return the correction of every row. features: shape (rows, features)"""
        first, inverse = _distinct(features)
        return self._predict_each(features[first])[inverse]

    def _predict_each(self, features: Floats) -> Floats:
        out = np.full(len(features), self.offset)
        num_trees, num_leaves = self.value.shape
        base = np.arange(num_trees, dtype=np.int32) * np.int32(num_leaves)
        feature = np.pad(self.feature, ((0, 0), (1, 0))).astype(np.int32).ravel()
        threshold = np.pad(self.threshold, ((0, 0), (1, 0))).ravel()
        value = self.value.ravel()
        for start in range(0, len(features), _CHUNK_ROWS):
            rows = features[start : start + _CHUNK_ROWS].astype(np.float32)
            flat = rows.ravel()
            origin = (np.arange(len(rows), dtype=np.int32) * np.int32(rows.shape[1]))[:, None]
            place = np.ones((len(rows), num_trees), dtype=np.int32)
            for _ in range(num_leaves.bit_length() - 1):
                node = base + place
                right = flat.take(origin + feature.take(node)) > threshold.take(node)
                place = 2 * place + right
            out[start : start + _CHUNK_ROWS] += value.take(base + place - num_leaves).sum(axis=1)
        return out

    def to_json(self) -> dict[str, Any]:
        """Return the arrays as compressed text."""
        return {
            "num_trees": len(self.feature),
            "num_leaves": self.value.shape[1],
            "offset": self.offset,
            "feature": pack(self.feature.astype(np.uint8)),
            "threshold": pack(self.threshold.astype("<f4")),
            "value": pack(self.value.astype("<f2")),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Trees":
        """Return trees written by `to_json`."""
        trees, leaves = int(data["num_trees"]), int(data["num_leaves"])
        return cls(
            feature=unpack(data["feature"], "u1").reshape((trees, leaves - 1)).astype(np.int64),
            threshold=unpack(data["threshold"], "<f4").reshape((trees, leaves - 1)).astype(np.float32),
            value=unpack(data["value"], "<f2").reshape((trees, leaves)).astype(np.float64),
            offset=float(data["offset"]),
        )
