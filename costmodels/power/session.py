"""Runs of products that one measuring session read high or low, as a table over the grid of shapes.

A source measures rows m, then columns n, then depths k. Where its meter samples out of step with a loop of
under a second, readings stay off for a whole run of depths of one (m, n): by a factor of up to four, at the
same latency. The table holds, at each node, the mean residual of its neighbours in the run, so it describes
that source's readings and no other product: away from the rows and columns that it measured it is empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.packed_arrays import pack, unpack

__all__ = ["SessionDrift", "fit_session", "others_drift"]

Floats = npt.NDArray[np.float64]

_RUN_NODES = 1.5
"""Depths over which a run is remembered: the weight of a neighbour falls by e."""
_PRIOR = 0.3
"""Weight of reading as the products elsewhere do."""
_FARTHEST = 1.5
"""Residuals count no more than this."""
_MEAN_STEP = 1 / 80
_WEIGHT_STEP = 1 / 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SessionDrift:
    """Mean residual of the readings around each node, and how many there were."""

    rows: Floats
    columns: Floats
    depths: Floats
    """Nodes of m, n and k, ascending."""
    mean: npt.NDArray[np.int8]
    """ln(read / usual) in steps of 1/80. shape (formats, rows, columns, depths)"""
    weight: npt.NDArray[np.uint8]
    """Neighbours, nearer ones counting more, in steps of 1/16."""

    def features(self, group: npt.NDArray[np.int64], m: Floats, n: Floats, k: Floats) -> Floats:
        """Return mean and weight at each product, zero off the measured rows and columns. shape (rows, 2)

        Parameters
        ----------
        group : index of the format in the table.
        """
        place = group, _nearest(self.rows, m), _nearest(self.columns, n), _nearest(self.depths, k)
        known = (self.rows[place[1]] == m) & (self.columns[place[2]] == n)
        columns = [self.mean[place] * _MEAN_STEP * known, self.weight[place] * _WEIGHT_STEP * known]
        return np.stack(columns, axis=1)

    def to_json(self) -> dict[str, Any]:
        """Return the nodes as numbers and the tables as compressed text."""
        nodes = {name: getattr(self, name).tolist() for name in ("rows", "columns", "depths")}
        return nodes | {"mean": pack(self.mean), "weight": pack(self.weight)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "SessionDrift":
        """Return a table written by `to_json`."""
        rows, columns, depths = (np.array(data[name], dtype=float) for name in ("rows", "columns", "depths"))
        shape = (-1, len(rows), len(columns), len(depths))
        return cls(
            rows=rows,
            columns=columns,
            depths=depths,
            mean=unpack(data["mean"], "i1").reshape(shape),
            weight=unpack(data["weight"], "u1").reshape(shape),
        )


def _nearest(nodes: Floats, value: Floats) -> npt.NDArray[np.intp]:
    middle = np.log(nodes[:-1]) / 2 + np.log(nodes[1:]) / 2
    return np.searchsorted(middle, np.log(value))


def _sums(
    place: Sequence[npt.NDArray[np.int64]], shape: tuple[int, ...], residual: Floats
) -> tuple[Floats, Floats]:
    """Return the weighted sum of residuals around each node and the sum of weights."""
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, tuple(place), residual)
    np.add.at(count, tuple(place), 1.0)
    order = np.arange(shape[-1])
    near = np.exp(-np.abs(order[:, None] - order) / _RUN_NODES)
    return total @ near, count @ near


def _placed(
    group: npt.NDArray[np.int64], m: Floats, n: Floats, k: Floats
) -> tuple[list[Floats], list[npt.NDArray[np.int64]], tuple[int, ...]]:
    pairs = [np.unique(x, return_inverse=True) for x in (m, n, k)]
    nodes, place = [p[0] for p in pairs], [group, *(p[1] for p in pairs)]
    return nodes, place, (int(group.max()) + 1, *(len(x) for x in nodes))


def fit_session(
    group: npt.NDArray[np.int64], m: Floats, n: Floats, k: Floats, residual: Floats
) -> SessionDrift:
    """Return the table of all readings; `residual` is ln(read / usual) of products that the usual was not
    fitted to.
    """
    nodes, place, shape = _placed(group, m, n, k)
    total, weight = _sums(place, shape, np.clip(residual, -_FARTHEST, _FARTHEST))
    mean = np.round(total / (weight + _PRIOR) / _MEAN_STEP)
    return SessionDrift(
        rows=nodes[0],
        columns=nodes[1],
        depths=nodes[2],
        mean=np.clip(mean, -127, 127).astype(np.int8),
        weight=np.clip(np.round(weight / _WEIGHT_STEP), 0, 255).astype(np.uint8),
    )


def others_drift(group: npt.NDArray[np.int64], m: Floats, n: Floats, k: Floats, residual: Floats) -> Floats:
    """Return the features of each reading as the others give them, its own left out. shape (rows, 2)"""
    _, place, shape = _placed(group, m, n, k)
    own = np.clip(residual, -_FARTHEST, _FARTHEST)
    total, weight = (table[tuple(place)] for table in _sums(place, shape, own))
    weight = weight - 1.0
    return np.stack([(total - own) / (weight + _PRIOR), weight], axis=1)
