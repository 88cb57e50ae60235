"""Predict a table of measured training runs and say how good the predictions are."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.accuracy import Errors, Feasibility, errors, feasibility
from costmodels.run_table import read_run_table
from costmodels.training.evaluate import evaluate
from costmodels.training.runs import NEEDED_COLUMNS, Run, group_runs, parse_runs
from costmodels.training.stack_choice import knows_source

__all__ = ["TrainingBacktest", "backtest_training", "predict_runs"]

Floats = npt.NDArray[np.float64]

_FIT_PROBABILITY = 0.75
"""A row counts as predicted to fit when that is three times likelier than not: a run that fails costs more
than one that is passed over."""


@dataclass(frozen=True, slots=True, eq=False)
class RunPredictions:
    """Predicted time and memory of runs, in order."""

    step_s: Floats
    low_s: Floats
    high_s: Floats
    peak_memory_bytes: Floats
    fits_probability: Floats


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBacktest:
    """All predictions of one table with their errors, over all, by source and by any column asked for."""

    path: str
    num_rows: int
    runs: tuple[Run, ...]
    predictions: RunPredictions
    rejected: tuple[tuple[str, str], ...]
    filled: dict[str, int]
    overall: Errors
    sources: dict[str, Errors]
    by: dict[str, Errors]
    feasibility: Feasibility

    def to_json(self) -> dict[str, Any]:
        """Return the backtest as the file format of ``backtest train --json``."""
        p = self.predictions
        rows = [
            {
                "row_id": run.row_id,
                "iter_time_s": float(p.step_s[i]),
                "iter_time_low_s": float(p.low_s[i]),
                "iter_time_high_s": float(p.high_s[i]),
                "peak_memory_bytes": float(p.peak_memory_bytes[i]),
                "fits_probability": float(p.fits_probability[i]),
                "stack": run.job.stack,
            }
            for i, run in enumerate(self.runs)
        ]
        return {
            "kind": "train",
            "num_rows": self.num_rows,
            "num_predicted": len(self.runs),
            "rejected": [{"row_id": row_id, "why": why} for row_id, why in self.rejected],
            "filled_defaults": self.filled,
            "overall": self.overall.to_json(),
            "sources": {name: e.to_json() for name, e in self.sources.items()},
            "by": {name: e.to_json() for name, e in self.by.items()},
            "feasibility": self.feasibility.to_json(),
            "predictions": rows,
        }

    def table_rows(self) -> list[tuple[str, Errors]]:
        """Return what a person reads: one row per source (or value of the column asked for), then all."""
        return [*(self.by or self.sources).items(), ("all", self.overall)]


def predict_runs(runs: list[Run]) -> RunPredictions:
    """Return predictions for every run, costed as tables of strategies that share job and cluster."""
    out = RunPredictions(*(np.full(len(runs), np.nan) for _ in range(5)))
    for group in group_runs(runs):
        costs = evaluate(
            group.job,
            group.cluster,
            group.configs,
            source=group.source,
            stack_known=knows_source(group.source),
        )
        out.step_s[group.index] = costs.step_s
        out.low_s[group.index] = costs.step_low_s
        out.high_s[group.index] = costs.step_high_s
        out.peak_memory_bytes[group.index] = costs.peak_memory_bytes
        out.fits_probability[group.index] = costs.fits_probability
    return out


def _errors_of(runs: list[Run], p: RunPredictions, rows: list[int]) -> Errors:
    timed = np.array([i for i in rows if runs[i].step_s], dtype=np.intp)
    measured = np.array([runs[i].step_s or math.nan for i in timed])
    return errors(p.step_s[timed], measured, p.low_s[timed], p.high_s[timed], [runs[i].group for i in timed])


def _split(runs: list[Run], p: RunPredictions, labels: list[str]) -> dict[str, Errors]:
    members: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    return {label: _errors_of(runs, p, rows) for label, rows in sorted(members.items())}


def _feasibility(runs: list[Run], p: RunPredictions) -> Feasibility:
    labelled = np.array([i for i, r in enumerate(runs) if r.oom is not None], dtype=np.intp)
    measured = np.array([runs[i].step_s or math.nan for i in labelled])
    return feasibility(
        np.array([bool(runs[i].oom) for i in labelled], dtype=bool),
        p.fits_probability[labelled] >= _FIT_PROBABILITY,
        p.step_s[labelled],
        measured,
        [runs[i].group for i in labelled],
    )


def backtest_training(path: Path | str, *, by: str | None = None) -> TrainingBacktest:
    """Return predictions and errors for the runs of a CSV table.

    Parameters
    ----------
    by : a column of the table; errors are split by its values beside the sources.

    Raises
    ------
    SpecError
        if the table cannot be read, lacks a needed column, or lacks `by`.
    """
    table = read_run_table(path, NEEDED_COLUMNS, by=by)
    runs, rejected = parse_runs(table)
    p = predict_runs(runs)
    return TrainingBacktest(
        path=str(path),
        num_rows=len(table.rows),
        runs=tuple(runs),
        predictions=p,
        rejected=tuple(rejected),
        filled=dict(Counter(table.filled)),
        overall=_errors_of(runs, p, list(range(len(runs)))),
        sources=_split(runs, p, [r.source for r in runs]),
        by=_split(runs, p, [r.row.get(by, "") for r in runs]) if by else {},
        feasibility=_feasibility(runs, p),
    )
