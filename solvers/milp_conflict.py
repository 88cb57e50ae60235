"""Which named rows of an infeasible program contradict each other.

Where the linear relaxation is infeasible already, HiGHS names an irreducible set of rows. Otherwise the
conflict needs integrality, for which no solver has a ready answer: rows get penalised slack, and every row
that uses its slack is made hard again until nothing fits any more (the elastic filter of Chinneck and
Dravnieks, "Locating minimal infeasible constraint sets in linear programs", ORSA J. Computing 3, 1991); a
deletion filter then drops the rows that the contradiction does not need.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from solvers.milp_program import Program

__all__ = ["conflicting_rows"]

Floats = npt.NDArray[np.float64]
Solve = Callable[[Program], Floats | None]

_MAX_DELETIONS = 40
"""Extra solves spent on making a conflict smaller."""


def conflicting_rows(program: Program, solve: Solve) -> tuple[str, ...]:
    """Return names of rows that together admit no solution; empty if none could be found.

    Parameters
    ----------
    program : an infeasible program.
    solve : returns some feasible vector of a program, or None.
    """
    relaxed = replace(program, integer=np.zeros_like(program.integer))
    rows = _linear_conflict(relaxed) or _elastic_conflict(program, solve)
    if len(rows) <= _MAX_DELETIONS:
        for row in list(rows):
            fewer = [r for r in rows if r != row]
            if fewer and solve(_only_rows(program, fewer)) is None:
                rows = fewer
    return tuple(program.row_names[r] for r in rows)


def _only_rows(program: Program, rows: list[int]) -> Program:
    """Return the program with all but the given rows made void, without its cost."""
    keep = np.zeros(len(program.row_names), dtype=bool)
    keep[rows] = True
    return replace(
        program,
        cost=np.zeros_like(program.cost),
        row_lower=np.where(keep, program.row_lower, -np.inf),
        row_upper=np.where(keep, program.row_upper, np.inf),
    )


def _linear_conflict(program: Program) -> list[int]:
    """Return the rows of an irreducible infeasible set of a linear program, empty if it is feasible."""
    import highspy

    highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    highs.setOptionValue("output_flag", False)
    for low, high in zip(program.lower.tolist(), program.upper.tolist(), strict=True):
        highs.addVar(low, high)
    for (index, values), low, high in zip(
        program.rows(), program.row_lower.tolist(), program.row_upper.tolist(), strict=True
    ):
        highs.addRow(low, high, len(index), index.astype(np.int32), values)
    highs.run()
    if highs.getModelStatus() != highspy.HighsModelStatus.kInfeasible:
        return []
    _, iis = highs.getIis()
    return sorted(int(row) for row in iis.row_index_)


def _elastic_conflict(program: Program, solve: Solve) -> list[int]:
    """Return rows that contradict each other once integers are whole."""
    hard: list[int] = []
    for _ in range(len(program.row_names)):
        elastic, slack_rows = _elastic(program, hard)
        values = solve(elastic)
        if values is None:
            return sorted(hard)
        slack = values[len(program.column_names) :]
        used = {slack_rows[i] for i in np.flatnonzero(slack > 1e-6 * np.max(slack, initial=1e-6))}
        if not used:
            return []
        hard.extend(sorted(used))
    return sorted(hard)


def _elastic(program: Program, hard: list[int]) -> tuple[Program, list[int]]:
    """Return the program with two penalised slacks on every row that is not hard, and their rows."""
    soft = np.setdiff1d(np.arange(len(program.row_names)), np.array(hard, dtype=np.int64))
    scale = np.ones(len(program.row_names))
    np.maximum.at(scale, program.entry_rows, np.abs(program.entry_values))
    num_columns, num_slacks = len(program.column_names), 2 * len(soft)
    rows = np.concatenate([program.entry_rows, soft, soft])
    columns = np.concatenate([program.entry_columns, num_columns + np.arange(num_slacks)])
    values = np.concatenate([program.entry_values, np.ones(len(soft)), -np.ones(len(soft))])
    order = np.lexsort((columns, rows))
    penalty = 1.0 / scale[soft]
    elastic = replace(
        program,
        column_names=(*program.column_names, *(f"slack {i}" for i in range(num_slacks))),
        cost=np.concatenate([np.zeros(num_columns), penalty, penalty]),
        lower=np.concatenate([program.lower, np.zeros(num_slacks)]),
        upper=np.concatenate([program.upper, np.full(num_slacks, np.inf)]),
        integer=np.concatenate([program.integer, np.zeros(num_slacks, dtype=bool)]),
        entry_rows=rows[order],
        entry_columns=columns[order],
        entry_values=values[order],
    )
    return elastic, [int(r) for r in np.concatenate([soft, soft])]
