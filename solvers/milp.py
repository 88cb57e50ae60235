"""Linear and mixed-integer programs: PuLP models, solved by HiGHS or by any other solver that PuLP finds.

A `Program` is plain arrays with a name for every row and column:

    minimise  cost . x   subject to   row_lower <= A x <= row_upper,  lower <= x <= upper,  some x integer.

Formulations build one with `ProgramBuilder`, hand it to `solve_program` and decode the returned vector.
This module is the only one that imports PuLP. It guards against what solvers are known to get wrong:

* PuLP's ``status`` says Optimal after a time limit, so ``sol_status`` decides between OPTIMAL and FEASIBLE;
* default tolerances are absolute, and once accepted a threefold dearer answer where coefficients began at
  1e-7: rows, continuous columns and the objective are scaled by powers of two, tolerances are tightened;
* an answer is rounded and checked against the program itself before it is returned;
* an infeasible program is explained by the names of its conflicting rows.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hardware.errors import InputError, UnknownNameError
from solvers.milp_conflict import conflicting_rows
from solvers.milp_program import Program, ProgramBuilder, lp_text, scale_program
from solvers.outcome import Outcome, Status

__all__ = ["Program", "ProgramBuilder", "lp_text", "solve_program"]

Floats = npt.NDArray[np.float64]

_ROW_TOLERANCE = 1e-7
"""Relative to the sum of a row's absolute terms; a hundred times what HiGHS is asked to keep."""

_KNOWN_MARGIN = 1e-6
"""A known answer must stay inside the bound that it sets."""

_SUB_MIPS = (
    "mip_heuristic_run_rins",
    "mip_heuristic_run_rens",
    "mip_heuristic_run_root_reduced_cost",
    "mip_allow_restart",
)

_ALIASES = {
    "cbc": "PULP_CBC_CMD",
    "coin": "COIN_CMD",
    "glpk": "GLPK_CMD",
    "highs-cmd": "HiGHS_CMD",
    "scip": "SCIP_PY",
}


@dataclass(frozen=True, slots=True)
class _Raw:
    """What one call of the solver said, before any check."""

    status: Status
    values: Floats | None = None
    bound: float | None = None


def solve_program(
    program: Program,
    *,
    solver: str = "highs",
    time_limit_s: float | None = None,
    rel_gap: float = 1e-6,
    seed: int = 0,
    explain: bool = True,
    sub_mips: bool = True,
    known_objective: float | None = None,
) -> Outcome[Floats]:
    """Return the best column values found, with the solver's bound, re-checked against the program.

    Parameters
    ----------
    solver : "highs", or any other solver that PuLP finds installed ("cbc", "scip", "gurobi" ...).
    time_limit_s : stop then with the best answer so far; None is no limit. [s]
    rel_gap : accept an integer answer this close to the bound.
    explain : on infeasibility, spend further solves to name the conflicting rows.
    sub_mips : let HiGHS look for answers by smaller programs of its own and restart; off is faster where a
        good answer is known, or comes by itself.
    known_objective : of a solution that is known to exist: HiGHS looks for nothing dearer.

    Raises
    ------
    UnknownNameError
        if PuLP knows no such solver.
    InputError
        if the solver is not installed here.
    """
    started = time.monotonic()
    empty = [n for n, lo, up in zip(program.column_names, *program.integer_range, strict=True) if lo > up]
    if empty:
        return Outcome(status=Status.INFEASIBLE, conflict=tuple(f"bounds of {n}" for n in empty))
    raw = _run(program, solver, time_limit_s, rel_gap, seed, sub_mips=sub_mips, known=known_objective)
    if known_objective is not None and raw.values is None:
        raw = _run(program, solver, time_limit_s, rel_gap, seed, sub_mips=sub_mips)
    if raw.status is Status.INFEASIBLE:
        free = replace(program, cost=np.zeros_like(program.cost))
        if program.cost.any() and _run(free, solver, time_limit_s, rel_gap, seed).values is not None:
            raw = _Raw(Status.UNBOUNDED)
    conflict: tuple[str, ...] = ()
    if raw.status is Status.INFEASIBLE and explain:
        conflict = conflicting_rows(program, lambda p: _run(p, solver, time_limit_s, 1e-4, seed).values)
    values = None if raw.values is None else _checked(program, raw.values, solver, seed)
    wall_s = time.monotonic() - started
    if values is None:
        status = Status.NO_ANSWER if raw.values is not None else raw.status
        return Outcome(status=status, bound=raw.bound, wall_s=wall_s, conflict=conflict)
    objective = float(program.cost @ values)
    bound = None if raw.bound is None else min(raw.bound, objective)
    return Outcome(status=raw.status, solution=values, objective=objective, bound=bound, wall_s=wall_s)


def _checked(program: Program, values: Floats, solver: str, seed: int) -> Floats | None:
    """Return the values with exact integers where every row still holds, after one repair; else None."""
    rounded = _rounded(program, values)
    if _holds(program, rounded):
        return rounded
    fixed = replace(
        program,
        lower=np.where(program.integer, rounded, program.lower),
        upper=np.where(program.integer, rounded, program.upper),
        integer=np.zeros_like(program.integer),
    )
    again = _run(fixed, solver, None, 1e-9, seed).values
    if again is None:
        return None
    repaired = _rounded(program, again)
    return repaired if _holds(program, repaired) else None


def _rounded(program: Program, values: Floats) -> Floats:
    whole = np.where(program.integer, np.round(values), values)
    clipped: Floats = np.clip(whole, program.lower, program.upper)
    return clipped


def _holds(program: Program, values: Floats) -> bool:
    """Return whether every row is kept, up to rounding of the row's own terms."""
    activity, size = program.activity(values)
    slack = _ROW_TOLERANCE * np.maximum(size, np.finfo(float).tiny)
    return bool(
        np.all(activity >= program.row_lower - slack) and np.all(activity <= program.row_upper + slack)
    )


def _run(
    program: Program,
    solver: str,
    time_limit_s: float | None,
    rel_gap: float,
    seed: int,
    *,
    sub_mips: bool = True,
    known: float | None = None,
) -> _Raw:
    """Return what the solver says of the scaled program, in the program's own units."""
    import pulp

    scaled, column_scale, cost_scale = scale_program(program)
    problem, columns = _pulp_problem(scaled)
    options: dict[str, object] = {} if sub_mips else dict.fromkeys(_SUB_MIPS, False)
    if known is not None:
        options["objective_bound"] = (known + _KNOWN_MARGIN * abs(known)) * cost_scale
    backend = _backend(solver, time_limit_s, rel_gap, seed, options)
    problem.solve(backend)
    status = {
        pulp.LpSolutionOptimal: Status.OPTIMAL,
        pulp.LpSolutionIntegerFeasible: Status.FEASIBLE,
        pulp.LpSolutionInfeasible: Status.INFEASIBLE,
        pulp.LpSolutionUnbounded: Status.UNBOUNDED,
    }.get(problem.sol_status, Status.NO_ANSWER)
    if status not in (Status.OPTIMAL, Status.FEASIBLE):
        return _Raw(status)
    rest = np.clip(0.0, scaled.lower, scaled.upper)
    found = [c.varValue if c.varValue is not None else r for c, r in zip(columns, rest, strict=True)]
    scaled_values = np.array(found, dtype=float)
    bound = _bound(problem, float(scaled.cost @ scaled_values), status, bool(program.integer.any()), rel_gap)
    return _Raw(status, scaled_values * column_scale, None if bound is None else bound / cost_scale)


def _pulp_problem(program: Program) -> tuple[Any, list[Any]]:
    """Return the PuLP model and its variables in column order."""
    import pulp

    problem = pulp.LpProblem("meshwright", pulp.LpMinimize)
    add_variable = getattr(problem, "add_variable", pulp.LpVariable)  # the old way warns from 3.3 on
    columns = [
        add_variable(
            f"c{i}",
            None if np.isneginf(lo) else float(lo),
            None if np.isposinf(up) else float(up),
            pulp.LpInteger if whole else pulp.LpContinuous,
        )
        for i, (lo, up, whole) in enumerate(zip(program.lower, program.upper, program.integer, strict=True))
    ]
    problem += pulp.LpAffineExpression(list(zip(columns, program.cost.tolist(), strict=True)))
    for i, (index, value) in enumerate(program.rows()):
        terms = [(columns[j], v) for j, v in zip(index.tolist(), value.tolist(), strict=True)]
        low, high = float(program.row_lower[i]), float(program.row_upper[i])
        row = pulp.LpAffineExpression(terms)
        if low == high:
            problem += row == low, f"r{i}"
            continue
        if np.isfinite(low):
            problem += row >= low, f"r{i}l"
        if np.isfinite(high):
            problem += row <= high, f"r{i}u"
    return problem, columns


def _backend(
    solver: str, time_limit_s: float | None, rel_gap: float, seed: int, highs_options: dict[str, object]
) -> Any:
    """Return PuLP's object for the named solver, with the options that it understands."""
    import inspect

    import pulp

    if solver.lower() == "highs":
        return pulp.HiGHS(
            msg=False,
            timeLimit=time_limit_s,
            gapRel=rel_gap,
            gapAbs=0.0,
            primal_feasibility_tolerance=1e-9,
            dual_feasibility_tolerance=1e-9,
            mip_feasibility_tolerance=1e-9,
            random_seed=seed,
            **highs_options,
        )
    known = {name.lower(): name for name in pulp.listSolvers()}
    name = _ALIASES.get(solver.lower()) or known.get(solver.lower())
    if name is None:
        raise UnknownNameError("solver", solver, {"highs", *_ALIASES, *known})
    backend_class = next(c for c in pulp.apis._all_solvers if c.name == name)
    accepted = inspect.signature(backend_class.__init__).parameters
    options = {"msg": False, "timeLimit": time_limit_s, "gapRel": rel_gap}
    backend = backend_class(**{k: v for k, v in options.items() if k in accepted and v is not None})
    if not backend.available():
        message = f"solver {solver!r} is not installed here; 'highs' always is"
        raise InputError(message)
    return backend


def _bound(problem: Any, objective: float, status: Status, integral: bool, rel_gap: float) -> float | None:
    """Return the proven lower bound on the scaled objective, None where the solver gives none."""
    highs: Any = getattr(problem, "solverModel", None)
    if integral and hasattr(highs, "getInfo"):
        bound = float(highs.getInfo().mip_dual_bound)
        return bound if np.isfinite(bound) else None
    if status is Status.OPTIMAL:
        return objective - (rel_gap * abs(objective) if integral else 0.0)
    return None
