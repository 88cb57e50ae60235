"""How good predictions are: error, interval coverage, rank within a group, regret, feasibility."""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Errors", "Feasibility", "errors", "feasibility", "rank_correlation"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_MIN_GROUP = 2
"""Rows that a group needs before it can be ranked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Error of a set of predictions; fractions, not percent. NaN where nothing could be computed."""

    num_rows: int
    mape_frac: float
    median_ape_frac: float
    signed_median_frac: float
    spearman: float
    kendall: float
    num_groups: int
    regret_mean_frac: float
    regret_max_frac: float
    random_regret_frac: float
    top1_frac: float
    interval_coverage_frac: float

    def to_json(self) -> dict[str, float | int | None]:
        """Return the figures with null where there is none."""
        return {k: (None if isinstance(v, float) and np.isnan(v) else v) for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Feasibility:
    """How well fitting and not fitting are told apart, and whether the pick of each task runs."""

    num_labelled: int
    precision_frac: float
    recall_frac: float
    num_tasks: int
    num_oom_picks: int
    regret_mean_frac: float

    def to_json(self) -> dict[str, float | int | None]:
        """Return the figures with null where there is none."""
        return {k: (None if isinstance(v, float) and np.isnan(v) else v) for k, v in asdict(self).items()}


def _ranks(values: Floats) -> Floats:
    """Return average ranks, ties sharing theirs."""
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values))
    ranks[order] = np.arange(len(values), dtype=np.float64)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    sums = np.zeros(len(counts))
    np.add.at(sums, inverse, ranks)
    return sums[inverse] / counts[inverse]


def rank_correlation(predicted: Floats, measured: Floats) -> tuple[float, float]:
    """Return Spearman's rho and Kendall's tau-b; NaN for fewer than two rows or no spread."""
    if len(predicted) < _MIN_GROUP:
        return float("nan"), float("nan")
    a, b = _ranks(predicted), _ranks(measured)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    rho = float((a * b).sum() / scale) if scale > 0 else float("nan")
    x = np.sign(predicted[:, None] - predicted[None, :])
    y = np.sign(measured[:, None] - measured[None, :])
    pairs = np.sqrt((x * x).sum() * (y * y).sum())
    tau = float((x * y).sum() / pairs) if pairs > 0 else float("nan")
    return rho, tau


def _picked(predicted: Floats, measured: Floats) -> float:
    """Return the measured time of the row predicted fastest, ties averaged."""
    return float(measured[predicted <= predicted.min() * (1 + 1e-9)].mean())


def _group_rows(groups: list[str]) -> list[npt.NDArray[np.intp]]:
    members: dict[str, list[int]] = {}
    for i, name in enumerate(groups):
        if name:
            members.setdefault(name, []).append(i)
    return [np.array(rows, dtype=np.intp) for rows in members.values() if len(rows) >= _MIN_GROUP]


def _mean(values: list[float]) -> float:
    clean = [v for v in values if not np.isnan(v)]
    return float(np.mean(clean)) if clean else float("nan")


def errors(predicted: Floats, measured: Floats, low: Floats, high: Floats, groups: list[str]) -> Errors:
    """Return the error of `predicted` against `measured` (same units), ranked within `groups`.

    Regret is the measured value of the row ranked first over the best measured of its group, minus one;
    the random baseline is the group's mean in place of the pick.
    """
    if not len(predicted):
        nan = float("nan")
        names = [n for n in Errors.__dataclass_fields__ if n not in ("num_rows", "num_groups")]
        return Errors(num_rows=0, num_groups=0, **dict.fromkeys(names, nan))
    relative = predicted / measured - 1.0
    ranked = _group_rows(groups)
    correlations = [rank_correlation(predicted[r], measured[r]) for r in ranked]
    regrets = [_picked(predicted[r], measured[r]) / measured[r].min() - 1.0 for r in ranked]
    random = [float(measured[r].mean() / measured[r].min() - 1.0) for r in ranked]
    return Errors(
        num_rows=len(predicted),
        mape_frac=float(np.abs(relative).mean()),
        median_ape_frac=float(np.median(np.abs(relative))),
        signed_median_frac=float(np.median(relative)),
        spearman=_mean([c[0] for c in correlations]),
        kendall=_mean([c[1] for c in correlations]),
        num_groups=len(ranked),
        regret_mean_frac=_mean(regrets),
        regret_max_frac=max(regrets, default=float("nan")),
        random_regret_frac=_mean(random),
        top1_frac=_mean([float(r <= 1e-9) for r in regrets]),
        interval_coverage_frac=float(((measured >= low) & (measured <= high)).mean()),
    )


def feasibility(
    oom: Bools, fits: Bools, predicted: Floats, measured: Floats, groups: list[str]
) -> Feasibility:
    """Return how well `fits` tells apart the rows labelled `oom`.

    Parameters
    ----------
    oom : measured to run out of memory.
    fits : predicted to fit.
    predicted, measured : step times; measured is NaN where the run failed.
    groups : the planning tasks; a pick is the row predicted fastest among those predicted to fit.
    """
    caught = oom & ~fits
    nan = float("nan")
    picks = [r[fits[r]][np.argmin(predicted[r[fits[r]]])] for r in _group_rows(groups) if fits[r].any()]
    regrets: list[float] = []
    for rows in _group_rows(groups):
        ran = rows[~np.isnan(measured[rows])]
        chosen = rows[fits[rows]]
        if len(chosen) and len(ran):
            pick = chosen[np.argmin(predicted[chosen])]
            if not np.isnan(measured[pick]):
                regrets.append(float(measured[pick] / measured[ran].min() - 1.0))
    return Feasibility(
        num_labelled=len(oom),
        precision_frac=float(caught.sum() / (~fits).sum()) if (~fits).any() else nan,
        recall_frac=float(caught.sum() / oom.sum()) if oom.any() else nan,
        num_tasks=len(picks),
        num_oom_picks=int(sum(bool(oom[p]) for p in picks)),
        regret_mean_frac=_mean(regrets),
    )
