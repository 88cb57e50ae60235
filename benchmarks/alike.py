"""How far measurements that must be alike lie apart: what no model of their shape can predict."""

import numpy as np

__all__ = ["alike_products", "distance_from_alike"]

ROW_TILE = 16
"""Rows of the narrowest tile of matrix units: products with as few rows take as long as with one."""


def _less_median(values, label):
    """Return values less the median of those with their label."""
    out = np.array(values)
    order = np.argsort(label, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
        out[rows] -= np.median(values[rows])
    return out


def distance_from_alike(values, label):
    """Return how far each value lies from the median of its label, over the value.

    Scaled up by what a value pulls its own median: what a perfect model of the label would err.
    """
    away = np.zeros(len(values))
    for name in np.unique(label):
        rows = np.flatnonzero(label == name)
        away[rows] = np.abs(np.median(values[rows]) / values[rows] - 1) * len(rows) / (len(rows) - 1)
    return away


def alike_products(shape, seconds, rounds=4):
    """Return rows of matrix products that must be alike, and how far each lies from the rest of its kind.

    Alike are three or more of one weight (n, k) whose rows m fill one tile; what the number of rows itself
    costs, whatever the weight, is taken off first.
    """
    few = np.flatnonzero(shape["m"] <= ROW_TILE)
    weight = np.unique(np.stack([shape["n"][few], shape["k"][few]]), axis=1, return_inverse=True)[1].ravel()
    rows = few[np.bincount(weight)[weight] >= 3]
    weight = weight[np.bincount(weight)[weight] >= 3]
    left = np.log(seconds[rows])
    for _ in range(rounds):
        left = _less_median(_less_median(left, weight), shape["m"][rows])
    return rows, distance_from_alike(np.exp(left), weight)
