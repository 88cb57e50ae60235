"""Predict a table of measured peak memory and say how good the predictions are.

The figures are the allocator's (what the framework asked for), so slack and runtime play no part here.
"""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.accuracy import Errors, errors
from costmodels.cost_table import MemoryTable
from costmodels.intervals import Z90
from costmodels.memory.coefficients import golden_coefficients
from costmodels.memory.peak import memory_coefficients, stage_memory
from costmodels.memory.runs import NEEDED_COLUMNS, MemoryRun, parse_memory_runs
from costmodels.run_table import read_run_table
from costmodels.strategy import ConfigTable

__all__ = ["MemoryBacktest", "backtest_memory", "predict_memory"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class MemoryBacktest:
    """All predictions of one table with their errors: peak and steady memory, by test folder or column."""

    path: str
    num_rows: int
    runs: tuple[MemoryRun, ...]
    allocated_bytes: Floats
    peak_bytes: Floats
    rejected: tuple[tuple[str, str], ...]
    filled: dict[str, int]
    overall: Errors
    allocated: Errors
    sources: dict[str, Errors]
    by: dict[str, Errors]
    p90_ape_frac: float
    """Nine of ten peaks are closer than this."""

    def to_json(self) -> dict[str, Any]:
        """Return the backtest as the file format of ``backtest memory --json``."""
        rows = [
            {
                "row_id": run.path,
                "allocated_bytes": float(self.allocated_bytes[i]),
                "peak_bytes": float(self.peak_bytes[i]),
            }
            for i, run in enumerate(self.runs)
        ]
        return {
            "kind": "memory",
            "num_rows": self.num_rows,
            "num_predicted": len(self.runs),
            "rejected": [{"row_id": row_id, "why": why} for row_id, why in self.rejected],
            "filled_defaults": self.filled,
            "overall": {**self.overall.to_json(), "p90_ape_frac": _number(self.p90_ape_frac)},
            "allocated": self.allocated.to_json(),
            "sources": {name: e.to_json() for name, e in self.sources.items()},
            "by": {name: e.to_json() for name, e in self.by.items()},
            "predictions": rows,
        }

    def table_rows(self) -> list[tuple[str, Errors]]:
        """Return what a person reads: peak errors by folder (or column), of all, and the steady figures'."""
        split = (self.by or self.sources).items()
        return [*split, ("all, peak", self.overall), ("all, steady", self.allocated)]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def run_memory(run: MemoryRun) -> MemoryTable:
    """Return the memory of the last pipeline rank of one run, which is the rank that reports."""
    table = ConfigTable.from_strategies([run.strategy])
    c = replace(memory_coefficients(), workspace_bytes=run.workspace_bytes)
    memory = stage_memory(run.job, table, run.stack, table.pp - 1, c, details=run.details)
    if run.encoder is None:
        return memory
    c = replace(c, workspace_bytes=0.0)
    return _sum(memory, stage_memory(run.encoder, table, run.stack, table.pp - 1, c, details=run.details))


def _sum(a: MemoryTable, b: MemoryTable) -> MemoryTable:
    return MemoryTable(**{f.name: getattr(a, f.name) + getattr(b, f.name) for f in fields(MemoryTable)})


def predict_memory(runs: list[MemoryRun]) -> tuple[Floats, Floats]:
    """Return steady and peak allocated bytes of every run."""
    steady, peak = np.full(len(runs), np.nan), np.full(len(runs), np.nan)
    for i, run in enumerate(runs):
        m = run_memory(run)
        states = m.weights_bytes + m.gradients_bytes + m.optimizer_bytes
        steady[i] = states[0] + run.workspace_bytes
        peak[i] = m.allocated_bytes[0]
    return steady, peak


def _errors(predicted: Floats, measured: Floats) -> Errors:
    known = np.isfinite(measured)
    spread = np.exp(Z90 * golden_coefficients().sigma)
    p = predicted[known]
    return errors(p, measured[known], p / spread, p * spread, [""] * int(known.sum()))


def _split(labels: list[str], predicted: Floats, measured: Floats) -> dict[str, Errors]:
    names = np.array(labels)
    return {str(n): _errors(predicted[names == n], measured[names == n]) for n in np.unique(names)}


def backtest_memory(path: Path | str, *, by: str | None = None) -> MemoryBacktest:
    """Return predictions and errors for the runs of a CSV table of allocator figures.

    Parameters
    ----------
    by : a column of the table; errors are split by its values beside the test folders.

    Raises
    ------
    SpecError
        if the table cannot be read, lacks a needed column, or lacks `by`.
    """
    table = read_run_table(path, NEEDED_COLUMNS, by=by)
    runs, rejected = parse_memory_runs(table)
    steady, peak = predict_memory(runs)
    measured = np.array([r.peak_bytes or math.nan for r in runs])
    measured_steady = np.array([r.allocated_bytes or math.nan for r in runs])
    known = np.isfinite(measured)
    ape = np.abs(peak[known] / measured[known] - 1.0)
    return MemoryBacktest(
        path=str(path),
        num_rows=len(table.rows),
        runs=tuple(runs),
        allocated_bytes=steady,
        peak_bytes=peak,
        rejected=tuple(rejected),
        filled=dict(table.filled),
        overall=_errors(peak, measured),
        allocated=_errors(steady, measured_steady),
        sources=_split([r.family for r in runs], peak, measured),
        by=_split([r.row.get(by, "") for r in runs], peak, measured) if by else {},
        p90_ape_frac=float(np.quantile(ape, 0.9)) if ape.size else math.nan,
    )
