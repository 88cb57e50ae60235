"""How much of the regret lies in the data: rows that read the same, and the few groups that decide.

A module of `benchmarks.training_accuracy`. A prediction reads a run's model, batch, cluster, strategy and
release of the software. Runs that agree in all of these get one prediction, whatever predicts; where they
were measured apart, no ranking tells them from each other. The floor is the regret of a predictor that knows
the mean of all runs that read the same, those that it is judged on included: a statement about the data,
which no prediction is made from.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from costmodels.accuracy import errors
from costmodels.training.releases import release_months
from costmodels.training.runs import Run

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

HEADER = (
    "| source | groups | that cost | regret | dearest group | floor | floor, release unknown |\n" + "|---" * 7
)
COSTS = 0.005
"""Regret from which a group counts as one that costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Regret of a source's runs and what of it lies in the data; fractions."""

    num_groups: int
    num_that_cost: int
    regret_frac: float
    dearest_frac: float
    """What the dearest group adds to the mean."""
    floor_frac: float
    floor_without_release_frac: float
    """The floor where the release of the software is not told either."""


def _regrets(runs: list[Run], predicted: Floats, measured_s: Floats) -> Floats:
    groups = [r.group for r in runs]
    names = sorted({g for g in groups if g and groups.count(g) > 1})
    members = [np.array([i for i, g in enumerate(groups) if g == name]) for name in names]
    each = [
        errors(predicted[m], measured_s[m], predicted[m], predicted[m], [groups[i] for i in m])
        for m in members
    ]
    return np.array([e.regret_mean_frac for e in each])


def _class_means(keys: list[Hashable], measured_s: Floats) -> Floats:
    """Return the mean of all runs with the same key. shape (runs,)"""
    index = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    of = np.array([index[key] for key in keys])
    return np.asarray(np.bincount(of, measured_s) / np.bincount(of), dtype=np.float64)[of]


def floor_of(runs: list[Run], predicted: Floats, measured_s: Floats) -> Floor | None:
    """Return the floor of some runs of one source, None where nothing can be ranked."""
    regrets = _regrets(runs, predicted, measured_s)
    if not len(regrets):
        return None
    told: list[Hashable] = [(r.job, r.cluster, r.strategy) for r in runs]
    untold: list[Hashable] = [(replace(r.job, stack="", release=""), r.cluster, r.strategy) for r in runs]
    floors = [
        float(_regrets(runs, _class_means(keys, measured_s), measured_s).mean()) for keys in (told, untold)
    ]
    return Floor(
        num_groups=len(regrets),
        num_that_cost=int((regrets > COSTS).sum()),
        regret_frac=float(regrets.mean()),
        dearest_frac=float(regrets.max() / len(regrets)),
        floor_frac=floors[0],
        floor_without_release_frac=floors[1],
    )


def floor_lines(
    runs: list[Run], sources: npt.NDArray[np.str_], predicted: Floats, measured_s: Floats
) -> list[str]:
    """Return the table's lines, one per source that can be ranked."""
    lines = [HEADER + "|"]
    for source in sorted(set(sources)):
        rows = np.flatnonzero(sources == source)
        f = floor_of([runs[i] for i in rows], predicted[rows], measured_s[rows])
        if f is not None:
            lines.append(
                f"| {source} | {f.num_groups} | {f.num_that_cost} | {f.regret_frac:.2%} "
                f"| {f.dearest_frac:.2%} | {f.floor_frac:.2%} | {f.floor_without_release_frac:.2%} |"
            )
    return lines


def release_lines(runs: list[Run], measured_s: Floats) -> list[str]:
    """Return for each source what a month of newer software does to otherwise equal runs (median)."""
    alike: dict[Hashable, list[int]] = {}
    for i, r in enumerate(runs):
        if r.job.release:
            key = (r.source, replace(r.job, stack="", release=""), r.cluster, r.strategy)
            alike.setdefault(key, []).append(i)
    slopes: dict[str, list[float]] = {}
    for rows in alike.values():
        for i, j in combinations(rows, 2):
            months = release_months(runs[j].job.release) - release_months(runs[i].job.release)
            if months:
                slope = float(np.log(measured_s[j] / measured_s[i])) / months
                slopes.setdefault(runs[i].source, []).append(slope)
    return [
        f"{source}: {np.median(each):+.2%} of the step per month of newer software ({len(each)} pairs)"
        for source, each in sorted(slopes.items())
    ]
