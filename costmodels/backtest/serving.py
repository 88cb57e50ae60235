"""Measured serving points against predictions: errors overall, by group, and row by row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.serving.correction import ServingCorrection
from costmodels.serving.predict import RunPrediction, predict_run
from costmodels.serving.runs import ServingRun, read_serving_runs
from hardware.errors import InputError, PlannerError

__all__ = ["BY_COLUMNS", "ServingBacktest", "backtest_serving", "latency_errors"]

Floats = npt.NDArray[np.float64]

BY_COLUMNS: dict[str, Callable[[ServingRun], str]] = {
    "model": lambda run: run.model.name,
    "system": lambda run: run.system,
    "engine": lambda run: run.engine,
    "mode": lambda run: "split" if run.prefill is not None else "joint",
    "campaign": lambda run: run.source,
    "precision": lambda run: run.decode.experts.label,
}
"""What errors can be grouped by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingBacktest:
    """Predictions beside measurements."""

    num_rows: int
    rejected: tuple[tuple[str, str], ...]
    runs: tuple[ServingRun, ...]
    predictions: tuple[RunPrediction, ...]
    by: str

    def errors(self, rows: Sequence[int] | None = None) -> dict[str, dict[str, float | int | None]]:
        """Return errors of TPOT and TTFT over the chosen rows."""
        chosen = range(len(self.runs)) if rows is None else rows
        pairs = [(self.runs[i], self.predictions[i]) for i in chosen]
        return {
            "tpot": latency_errors([(p.tpot_s, r.tpot_s) for r, p in pairs]),
            "ttft": latency_errors([(p.ttft_s, r.ttft_s) for r, p in pairs]),
        }

    def groups(self) -> dict[str, dict[str, dict[str, float | int | None]]]:
        """Return the errors of every group."""
        members: dict[str, list[int]] = {}
        for i, run in enumerate(self.runs):
            members.setdefault(BY_COLUMNS[self.by](run), []).append(i)
        return {name: self.errors(rows) for name, rows in sorted(members.items())}

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return {
            "kind": "serve",
            "num_rows": self.num_rows,
            "num_predicted": len(self.predictions),
            "rejected": [{"row_id": row_id, "why": why} for row_id, why in self.rejected],
            "overall": self.errors(),
            "by": self.by,
            "groups": self.groups(),
            "predictions": [
                {
                    "row_id": p.row_id,
                    "ttft_s": p.ttft_s,
                    "tpot_s": p.tpot_s,
                    "throughput_tokens_per_s": p.throughput_tokens_per_s,
                }
                for p in self.predictions
            ],
        }

    def table_rows(self) -> list[tuple[str, "ErrorLine"]]:
        """Return one line over all rows and one per group, for a printed table."""
        tables = {"all": self.errors()} | self.groups()
        return [(name, ErrorLine(tpot=found["tpot"], ttft=found["ttft"])) for name, found in tables.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorLine:
    """Errors of one group of rows."""

    tpot: dict[str, float | int | None]
    ttft: dict[str, float | int | None]

    def to_json(self) -> dict[str, float | int | None]:
        """Return the figures by name."""
        figures: dict[str, float | int | None] = {"num_rows": self.tpot["num_rows"]}
        for label, errors in (("tpot", self.tpot), ("ttft", self.ttft)):
            figures |= {f"{label}_{name}": value for name, value in errors.items() if name != "num_rows"}
        return figures


def latency_errors(pairs: Sequence[tuple[float, float | None]]) -> dict[str, float | int | None]:
    """Return errors of (predicted, measured) pairs; those without a measurement are left out."""
    ratio = np.array([p / m for p, m in pairs if m is not None and m > 0.0])
    if len(ratio) == 0:
        return {"num_rows": 0, "mape_frac": None, "median_ape_frac": None, "signed_median_frac": None}
    off = np.abs(ratio - 1.0)
    return {
        "num_rows": len(ratio),
        "mape_frac": float(off.mean()),
        "median_ape_frac": float(np.median(off)),
        "signed_median_frac": float(np.median(ratio) - 1.0),
    }


def backtest_serving(
    path: str | Path, *, by: str | None = None, correction: ServingCorrection | None = None
) -> ServingBacktest:
    """Return predictions of every row of a table of measured serving points.

    Parameters
    ----------
    by : what to group errors by; a key of `BY_COLUMNS`, "model" by default.
    correction : in place of the shipped one.

    Raises
    ------
    InputError
        if the file cannot be read or `by` is no such column.
    """
    column = by or "model"
    if column not in BY_COLUMNS:
        message = f"--by {column}: serving points are grouped by {', '.join(BY_COLUMNS)}"
        raise InputError(message)
    runs, rejected = read_serving_runs(path)
    num_rows = len(runs) + len(rejected)
    kept: list[ServingRun] = []
    predictions: list[RunPrediction] = []
    for run in runs:
        try:
            predictions.append(predict_run(run, correction=correction))
        except PlannerError as error:
            rejected.append((run.row_id, str(error)))
            continue
        kept.append(run)
    return ServingBacktest(
        num_rows=num_rows,
        rejected=tuple(rejected),
        runs=tuple(kept),
        predictions=tuple(predictions),
        by=column,
    )
