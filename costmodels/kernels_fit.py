"""Fit one kernel surface: coefficients of the physics, then a boosted-tree correction judged on held-out groups.

The correction ships only where it beats the physics on shapes that were held out as whole groups.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.kernels_machine import Coefficients, Family, Floats, Format, Machine, Shape
from costmodels.kernels_surface import Surface, box_columns
from costmodels.kernels_trees import Trees

__all__ = ["Fitted", "TreeSettings", "errors", "fit_physics", "fit_surface", "fit_trees"]

_Z90 = 1.645
_SIGMA_KNOTS = 8
_SIGMA_FLOOR = 0.01
_BOUND = 30.0
"""A coefficient stays within this factor of where its fit starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSettings:
    """Size of the correction."""

    num_trees: int = 300
    depth: int = 5
    learning_rate: float = 0.06
    min_rows_per_leaf: int = 5
    l2: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """A surface and how it did on shapes it had not seen."""

    surface: Surface
    held_out: dict[str, float]
    physics_held_out: dict[str, float]
    predicted_s: Floats
    """Held-out prediction of every sample."""


def errors(predicted_s: Floats, measured_s: Floats) -> dict[str, float]:
    """Return mean, median, signed median and 90th percentile of the relative error."""
    error = predicted_s / measured_s - 1.0
    size = np.abs(error)
    return {
        "mape_frac": round(float(size.mean()), 5),
        "median_ape_frac": round(float(np.median(size)), 5),
        "signed_median_frac": round(float(np.median(error)), 5),
        "p90_ape_frac": round(float(np.quantile(size, 0.9)), 5),
    }


def fit_physics(
    family: Family,
    shape: Shape,
    seconds: Floats,
    machine: Machine,
    fmt: Format,
    *,
    start: Coefficients | None = None,
) -> dict[str, float]:
    """Return the coefficients that fit log seconds best, with a robust loss."""
    from scipy.optimize import least_squares  # slow to import, needed for fitting only

    first = dict(start or family.start)
    names = list(first)
    origin = np.log([first[n] for n in names])
    target = np.log(seconds)

    def residual(point: Floats) -> Floats:
        coefficients = dict(zip(names, np.exp(point), strict=True))
        return np.log(family.physics(shape, machine, fmt, coefficients)) - target

    reach = np.log(_BOUND)
    upper = origin + reach
    for i, name in enumerate(names):
        if name in ("compute_frac", "memory_frac"):
            upper[i] = np.log(1.05)
        if name == "sharpness":
            upper[i] = np.log(12.0)
    lower = np.where(np.array(names) == "sharpness", 0.0, origin - reach)
    answer = least_squares(
        residual,
        np.clip(origin, lower + 1e-6, upper - 1e-6),
        bounds=(lower, upper),
        loss="soft_l1",
        f_scale=0.1,
        max_nfev=60,
    )
    return {n: float(v) for n, v in zip(names, np.exp(answer.x), strict=True)}


def fit_trees(features: Floats, target: Floats, settings: TreeSettings, seed: int = 0) -> Trees:
    """Return boosted trees for `target`, exported from scikit-learn as plain arrays."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(
        max_iter=settings.num_trees,
        max_depth=settings.depth,
        max_leaf_nodes=2**settings.depth,
        learning_rate=settings.learning_rate,
        min_samples_leaf=settings.min_rows_per_leaf,
        l2_regularization=settings.l2,
        early_stopping=False,
        random_state=seed,
    )
    model.fit(features.astype(np.float32), target)
    leaves = 2**settings.depth
    trees = [_complete(stage[0].nodes, leaves) for stage in model._predictors]
    return Trees(
        feature=np.array([t[0] for t in trees], dtype=np.int64),
        threshold=np.array([t[1] for t in trees], dtype=np.float32),
        value=np.array([t[2] for t in trees], dtype=np.float64),
        offset=float(np.ravel(model._baseline_prediction)[0]),
    )


def _complete(nodes: npt.NDArray[np.void], leaves: int) -> tuple[list[int], list[float], list[float]]:
    """Return feature, threshold and leaf values of one grown tree as a complete binary tree."""
    feature, threshold = [0] * (leaves - 1), [0.0] * (leaves - 1)
    value = [0.0] * leaves
    pending = [(0, 0)]
    while pending:
        place, source = pending.pop()
        node = nodes[source]
        if place >= leaves - 1:
            value[place - leaves + 1] = float(node["value"])
        elif node["is_leaf"]:
            pending += [(2 * place + 1, source), (2 * place + 2, source)]
        else:
            feature[place], threshold[place] = int(node["feature_idx"]), float(node["num_threshold"])
            pending += [(2 * place + 1, int(node["left"])), (2 * place + 2, int(node["right"]))]
    return feature, threshold, value


def _folds(groups: npt.NDArray[np.str_], num_folds: int, seed: int) -> npt.NDArray[np.int64]:
    names, index = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    folds: npt.NDArray[np.int64] = (order % num_folds)[index]
    return folds


def _sigma_knots(predicted: Floats, measured: Floats) -> tuple[Floats, Floats]:
    """Return knots of log seconds and, there, the sigma whose 90 % interval held 90 % of the errors."""
    log_s, size = np.log(predicted), np.abs(np.log(measured / predicted))
    order = np.argsort(log_s)
    parts = [p for p in np.array_split(order, min(_SIGMA_KNOTS, max(1, len(order) // 30))) if len(p)]
    knots = np.array([np.median(log_s[p]) for p in parts])
    return knots, np.array([max(float(np.quantile(size[p], 0.9)) / _Z90, _SIGMA_FLOOR) for p in parts])


def fit_surface(
    family: Family,
    shape: Shape,
    seconds: Floats,
    machine: Machine,
    fmt: Format,
    *,
    groups: npt.NDArray[np.str_],
    settings: TreeSettings | None = None,
    num_folds: int = 5,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Fitted:
    """Return the surface of all samples, judged by cross-validation over whole `groups`."""
    settings = settings or TreeSettings()
    coefficients = fit_physics(family, shape, seconds, machine, fmt)
    physics = family.physics(shape, machine, fmt, coefficients)
    features = family.features(shape, machine, fmt)
    target = np.log(seconds / physics)
    folds = _folds(groups, num_folds, seed)
    held = np.zeros(len(seconds))
    for fold in range(num_folds):
        test = folds == fold
        if test.any() and not test.all():
            held[test] = fit_trees(features[~test], target[~test], settings, seed).predict(features[test])
    predicted = physics * np.exp(held)
    learned, plain = errors(predicted, seconds), errors(physics, seconds)
    wins = learned["mape_frac"] < plain["mape_frac"]
    if progress:
        progress(f"{family.name} {fmt.name}: held out {learned}, physics {plain}")
    best = predicted if wins else physics
    knots, sigma = _sigma_knots(best, seconds)
    columns = box_columns(family, shape)
    surface = Surface(
        family=family,
        fmt=fmt,
        coefficients=coefficients,
        machine=machine,
        measured=True,
        physics_log_sigma=float(np.quantile(np.abs(target), 0.9) / _Z90),
        box_low=columns.min(axis=0),
        box_high=columns.max(axis=0),
        trees=fit_trees(features, target, settings, seed) if wins else None,
        sigma_log_s=knots,
        sigma=sigma,
    )
    return Fitted(surface=surface, held_out=learned, physics_held_out=plain, predicted_s=best)
