"""Fit one kernel surface: coefficients of the physics, then a boosted-tree correction judged on held-out
groups.

The correction ships only where it beats the physics on shapes that were held out as whole groups.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from costmodels.intervals import Z90
from costmodels.kernels.machine import Coefficients, Family, Floats, Format, Machine, Shape
from costmodels.kernels.surface import Surface, box_columns, own_features
from costmodels.kernels.trees import Trees

__all__ = [
    "Fitted",
    "Sibling",
    "TreeSettings",
    "errors",
    "fit_physics",
    "fit_surface",
    "fit_trees",
    "rows_held_out",
]

_SIGMA_KNOTS = 8
_SIGMA_FLOOR = 0.01
_ROBUST_WIDTH = 2.0
"""Errors of this many robust standard deviations weigh half."""
_NOISE = 0.1
"""Spread of repeated measurements, against which the pull of a start is weighed (assumed)."""
_BOUND = 30.0
"""A coefficient stays within this factor of where its fit starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSettings:
    """Size of the correction."""

    num_trees: int = 250
    depth: int = 6
    learning_rate: float = 0.06
    min_rows_per_leaf: int = 3
    l2: float = 1.0
    features_frac: float = 0.3
    """Share of the features that a split may choose from."""
    num_leaves: int | None = None
    """Of a tree, at most; all that its depth allows unless given."""
    robust: bool = False
    """Rows far from a stiff first fit fade out."""
    smoothing: float | None = None
    """With it the mean relative error is least, rounded below this, in place of the squared error of the
    logarithm."""


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
    pull_log_sigma: float | None = None,
) -> dict[str, float]:
    """Return the coefficients that fit log seconds best, with a robust loss.

    Parameters
    ----------
    start : where the fit begins, the family's own otherwise.
    pull_log_sigma : standard deviation of the logarithm of each coefficient around its start; few samples
        then leave what they say nothing about where it was. None: no pull.
    """
    from scipy.optimize import least_squares  # slow to import, needed for fitting only

    first = dict(start or family.start)
    names = list(first)
    origin = np.log([first[n] for n in names])
    target = np.log(seconds)

    def residual(point: Floats) -> Floats:
        coefficients = dict(zip(names, np.exp(point), strict=True))
        misfit: Floats = np.log(family.physics(shape, machine, fmt, coefficients)) - target
        if pull_log_sigma is None:
            return misfit
        return np.concatenate([misfit, _NOISE * (point - origin) / pull_log_sigma])

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
        f_scale=_NOISE,
        max_nfev=60,
    )
    return {n: float(v) for n, v in zip(names, np.exp(answer.x), strict=True)}


def fit_trees(
    features: Floats, target: Floats, settings: TreeSettings, seed: int = 0, weight: Floats | None = None
) -> Trees:
    """Return boosted trees for `target`, exported from scikit-learn as plain arrays."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    from costmodels.relative_error import RelativeError  # imports scikit-learn

    leaves = 2**settings.depth
    model = HistGradientBoostingRegressor(
        loss="squared_error" if settings.smoothing is None else RelativeError(settings.smoothing),
        max_iter=settings.num_trees,
        max_depth=settings.depth,
        max_leaf_nodes=settings.num_leaves or leaves,
        learning_rate=settings.learning_rate,
        min_samples_leaf=settings.min_rows_per_leaf,
        l2_regularization=settings.l2,
        max_features=settings.features_frac,
        early_stopping=False,
        random_state=seed,
    )
    model.fit(features.astype(np.float32), target, sample_weight=weight)
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
    return knots, np.array([max(float(np.quantile(size[p], 0.9)) / Z90, _SIGMA_FLOOR) for p in parts])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sibling:
    """Samples of a device with the same dies, which help to shape the correction at less weight."""

    shape: Shape
    seconds: Floats
    machine: Machine
    groups: npt.NDArray[np.str_]
    weight: float = 0.3


def _robust_weights(features: Floats, target: Floats, weight: Floats) -> Floats:
    """Return weights that fade for rows that a stiff first fit cannot follow: Cauchy weights, two rounds.

    Some tables hold a few percent of rows that took two to three times as long, at random.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    fading = weight
    for _ in range(2):
        stiff = HistGradientBoostingRegressor(
            max_iter=80,
            max_leaf_nodes=16,
            learning_rate=0.1,
            min_samples_leaf=20,
            early_stopping=False,
            random_state=0,
        )
        error = target - stiff.fit(features.astype(np.float32), target, sample_weight=fading).predict(
            features.astype(np.float32)
        )
        scale = 1.4826 * float(np.median(np.abs(error)))
        fading = weight / (1.0 + (error / (_ROBUST_WIDTH * scale)) ** 2)
    return fading


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Training:
    """Rows that a correction is fitted on: the device's own first, then its siblings'."""

    features: Floats
    target: Floats
    weight: Floats
    groups: npt.NDArray[np.str_]
    num_own: int

    def fit(self, rows: npt.NDArray[np.bool_], settings: TreeSettings, seed: int) -> Trees:
        weight = self.weight[rows]
        if settings.robust:
            weight = _robust_weights(self.features[rows], self.target[rows], weight)
        return fit_trees(self.features[rows], self.target[rows], settings, seed, weight)


def _training(
    family: Family,
    shape: Shape,
    target: Floats,
    machine: Machine,
    fmt: Format,
    groups: npt.NDArray[np.str_],
    siblings: tuple[Sibling, ...],
) -> _Training:
    features, targets = [own_features(family, shape, machine, fmt)], [target]
    weights, names = [np.ones(len(target))], [groups]
    for other in siblings:
        own = fit_physics(family, other.shape, other.seconds, other.machine, fmt)
        ratio = other.seconds / family.physics(other.shape, other.machine, fmt, own)
        features.append(own_features(family, other.shape, machine, fmt, own=False))
        targets.append(np.log(ratio))
        weights.append(np.full(len(ratio), other.weight))
        names.append(other.groups)
    return _Training(
        features=np.concatenate(features),
        target=np.concatenate(targets),
        weight=np.concatenate(weights),
        groups=np.concatenate(names),
        num_own=len(target),
    )


def _held_out(training: _Training, settings: TreeSettings, num_folds: int, seed: int) -> Floats:
    """Return the correction of the device's own rows by models that saw no row of their group, siblings'
    included.
    """
    folds = _folds(training.groups, num_folds, seed)
    held = np.zeros(training.num_own)
    for fold in range(num_folds):
        test = folds[: training.num_own] == fold
        if test.any() and not test.all():
            trees = training.fit(folds != fold, settings, seed)
            held[test] = trees.predict(training.features[: training.num_own][test])
    return held


def fit_surface(
    family: Family,
    shape: Shape,
    seconds: Floats,
    machine: Machine,
    fmt: Format,
    *,
    groups: npt.NDArray[np.str_],
    siblings: tuple[Sibling, ...] = (),
    settings: TreeSettings | None = None,
    coefficients: Coefficients | None = None,
    num_folds: int = 4,
    seed: int = 0,
) -> Fitted:
    """Return the surface of all samples, judged by cross-validation over whole `groups`.

    `coefficients` of the physics are fitted unless they are given.
    """
    settings = settings or TreeSettings()
    coefficients = coefficients or fit_physics(family, shape, seconds, machine, fmt)
    physics = family.physics(shape, machine, fmt, coefficients)
    target = np.log(seconds / physics)
    training = _training(family, shape, target, machine, fmt, groups, siblings)
    predicted = physics * np.exp(_held_out(training, settings, num_folds, seed))
    learned, plain = errors(predicted, seconds), errors(physics, seconds)
    wins = learned["median_ape_frac"] < plain["median_ape_frac"]
    best = predicted if wins else physics
    knots, sigma = _sigma_knots(best, seconds)
    columns = box_columns(family, shape)
    everything = np.ones(len(training.target), dtype=bool)
    surface = Surface(
        family=family,
        fmt=fmt,
        coefficients=coefficients,
        machine=machine,
        measured=True,
        physics_log_sigma=float(np.quantile(np.abs(target), 0.9) / Z90),
        box_low=columns.min(axis=0),
        box_high=columns.max(axis=0),
        trees=training.fit(everything, settings, seed) if wins else None,
        sigma_log_s=knots,
        sigma=sigma,
    )
    return Fitted(surface=surface, held_out=errors(best, seconds), physics_held_out=plain, predicted_s=best)


def rows_held_out(
    surface: Surface,
    shape: Shape,
    seconds: Floats,
    *,
    siblings: tuple[Sibling, ...] = (),
    settings: TreeSettings | None = None,
    num_folds: int = 4,
    seed: int = 0,
) -> Floats:
    """Return the seconds that surfaces fitted as `surface` was predict of shapes held out at random.

    Other shapes of their groups were seen, unlike in `fit_surface`.
    """
    family, machine, fmt = surface.family, surface.machine, surface.fmt
    physics = family.physics(shape, machine, fmt, surface.coefficients)
    if surface.trees is None:
        return physics
    names = _shape_names(family, shape)
    others = tuple(replace(s, groups=_shape_names(family, s.shape)) for s in siblings)
    training = _training(family, shape, np.log(seconds / physics), machine, fmt, names, others)
    held = _held_out(training, settings or TreeSettings(), num_folds, seed)
    return np.asarray(physics * np.exp(held))


def _shape_names(family: Family, shape: Shape) -> npt.NDArray[np.str_]:
    rows = np.stack([shape[c] for c in family.columns], axis=1)
    return np.array([",".join(f"{v:g}" for v in row) for row in rows])
