"""A boosted-tree correction as plain arrays: fitted off-line by scikit-learn, evaluated here with numpy.

Every tree is stored as a complete binary tree of one depth; a branch that ended early repeats its value.
"""

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Trees"]

Floats = npt.NDArray[np.float64]
_CHUNK_ROWS = 512


def _pack(array: npt.NDArray[Any]) -> str:
    return base64.b85encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()


def _unpack(text: str, dtype: str, shape: tuple[int, int]) -> npt.NDArray[Any]:
    raw = zlib.decompress(base64.b85decode(text))
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


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
        out = np.full(len(features), self.offset)
        depth = int(np.log2(self.value.shape[1]))
        num_nodes = self.feature.shape[1]
        base = np.arange(len(self.feature), dtype=np.int64)
        feature, threshold, value = self.feature.ravel(), self.threshold.ravel(), self.value.ravel()
        for start in range(0, len(features), _CHUNK_ROWS):
            rows = features[start : start + _CHUNK_ROWS].astype(np.float32)
            flat = rows.ravel()
            origin = (np.arange(len(rows), dtype=np.int64) * rows.shape[1])[:, None]
            node = np.broadcast_to(base * num_nodes, (len(rows), len(base))).copy()
            local = np.zeros_like(node)
            for _ in range(depth):
                right = flat.take(origin + feature.take(node)) > threshold.take(node)
                step = local + 1 + right
                node += step
                local += step
            leaf = local - num_nodes + base * (num_nodes + 1)
            out[start : start + _CHUNK_ROWS] += value.take(leaf).sum(axis=1)
        return out

    def to_json(self) -> dict[str, Any]:
        """Return the arrays as compressed text."""
        return {
            "num_trees": len(self.feature),
            "num_leaves": self.value.shape[1],
            "offset": self.offset,
            "feature": _pack(self.feature.astype(np.uint8)),
            "threshold": _pack(self.threshold.astype("<f4")),
            "value": _pack(self.value.astype("<f2")),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Trees":
        """Return trees written by `to_json`."""
        trees, leaves = int(data["num_trees"]), int(data["num_leaves"])
        return cls(
            feature=_unpack(data["feature"], "u1", (trees, leaves - 1)).astype(np.int64),
            threshold=_unpack(data["threshold"], "<f4", (trees, leaves - 1)).astype(np.float32),
            value=_unpack(data["value"], "<f2", (trees, leaves)).astype(np.float64),
            offset=float(data["offset"]),
        )
