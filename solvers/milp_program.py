"""A linear or mixed-integer program as arrays with named rows and columns, its builder and its scaling."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["Program", "ProgramBuilder", "lp_text", "scale_program"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """Minimise ``cost . x`` over ``row_lower <= A x <= row_upper`` and column bounds.

    The matrix is a list of entries sorted by row; a pair of row and column occurs once.
    """

    column_names: tuple[str, ...]
    cost: Floats
    lower: Floats
    upper: Floats
    integer: Bools
    row_names: tuple[str, ...]
    row_lower: Floats
    row_upper: Floats
    entry_rows: Ints
    entry_columns: Ints
    entry_values: Floats

    @property
    def integer_range(self) -> tuple[Floats, Floats]:
        """Smallest and largest value that each column may really take."""
        low = np.where(self.integer, np.ceil(self.lower - 1e-9), self.lower)
        high = np.where(self.integer, np.floor(self.upper + 1e-9), self.upper)
        return low.astype(np.float64), high.astype(np.float64)

    def rows(self) -> Iterator[tuple[Ints, Floats]]:
        """Yield column indices and values of each row, in order."""
        edges = np.searchsorted(self.entry_rows, np.arange(len(self.row_names) + 1))
        for begin, end in pairwise(edges.tolist()):
            yield self.entry_columns[begin:end], self.entry_values[begin:end]

    def activity(self, values: Floats) -> tuple[Floats, Floats]:
        """Return A x, and for each row the sum of its terms' sizes (what rounding is relative to)."""
        terms = self.entry_values * values[self.entry_columns]
        num_rows = len(self.row_names)
        sides = np.where(np.isfinite(self.row_lower), np.abs(self.row_lower), 0.0)
        sides = np.maximum(sides, np.where(np.isfinite(self.row_upper), np.abs(self.row_upper), 0.0))
        total = np.bincount(self.entry_rows, weights=terms, minlength=num_rows)
        size = np.bincount(self.entry_rows, weights=np.abs(terms), minlength=num_rows)
        return total.astype(np.float64), (size + sides).astype(np.float64)


@dataclass(slots=True)
class ProgramBuilder:
    """Collects columns and rows; `build` returns the immutable program.

    Examples
    --------
    >>> builder = ProgramBuilder()
    >>> x = builder.column("x", cost=1.0, integer=True)
    >>> builder.row("demand", {x: 2.0}, lower=5.0)
    >>> builder.build().column_names
    ('x',)
    """

    _columns: list[tuple[str, float, float, float, bool]] = field(default_factory=list)
    _rows: list[tuple[str, Mapping[int, float], float, float]] = field(default_factory=list)

    def column(
        self,
        name: str,
        *,
        cost: float = 0.0,
        lower: float = 0.0,
        upper: float = np.inf,
        integer: bool = False,
    ) -> int:
        """Add one unknown and return its index."""
        if np.isnan([cost, lower, upper]).any() or lower > upper:
            message = f"column {name}: cost {cost}, bounds {lower} to {upper} are no numbers in order"
            raise ValueError(message)
        self._columns.append((name, cost, lower, upper, integer))
        return len(self._columns) - 1

    def row(
        self, name: str, terms: Mapping[int, float], *, lower: float = -np.inf, upper: float = np.inf
    ) -> None:
        """Add ``lower <= sum of coefficient * column <= upper``; terms map column indices to coefficients."""
        if np.isnan([lower, upper, *terms.values()]).any() or lower > upper:
            message = f"row {name}: bounds {lower} to {upper} or a coefficient are no numbers in order"
            raise ValueError(message)
        self._rows.append((name, dict(terms), lower, upper))

    def build(self) -> Program:
        """Return the program.

        Raises
        ------
        ValueError
            if there is no column, or two rows or two columns share a name.
        """
        if not self._columns:
            message = "a program needs at least one column"
            raise ValueError(message)
        names, cost, lower, upper, integer = (list(part) for part in zip(*self._columns, strict=True))
        row_names = [row[0] for row in self._rows]
        for kind, given in (("column", names), ("row", row_names)):
            if len(set(given)) != len(given):
                twice = sorted({n for n in given if given.count(n) > 1})
                message = f"{kind} names must differ; twice: {', '.join(twice[:5])}"
                raise ValueError(message)
        entries = [(i, j, v) for i, row in enumerate(self._rows) for j, v in row[1].items() if v]
        index = np.array([e[:2] for e in entries], dtype=np.int64).reshape(-1, 2)
        return Program(
            column_names=tuple(names),
            cost=np.array(cost, dtype=float),
            lower=np.array(lower, dtype=float),
            upper=np.array(upper, dtype=float),
            integer=np.array(integer, dtype=bool),
            row_names=tuple(row_names),
            row_lower=np.array([row[2] for row in self._rows], dtype=float),
            row_upper=np.array([row[3] for row in self._rows], dtype=float),
            entry_rows=index[:, 0],
            entry_columns=index[:, 1],
            entry_values=np.array([e[2] for e in entries], dtype=float),
        )


def scale_program(program: Program) -> tuple[Program, Floats, float]:
    """Return an equal program with entries near 1, and what its columns and its cost are multiplied by.

    Rows and continuous columns are divided by the geometric mean of their smallest and largest entry, twice,
    rounded to powers of two so that no digit is lost. Integer columns keep their unit.
    """
    num_rows, num_columns = len(program.row_names), len(program.column_names)
    rows, columns, values = program.entry_rows, program.entry_columns, program.entry_values
    row_scale: Floats = np.ones(num_rows)
    column_scale: Floats = np.ones(num_columns)
    for _ in range(2):
        sizes = np.abs(values) * row_scale[rows] * column_scale[columns]
        row_scale = row_scale * _balance(rows, sizes, num_rows)
        sizes = np.abs(values) * row_scale[rows] * column_scale[columns]
        factor = _balance(columns, sizes, num_columns)
        column_scale = np.where(program.integer, 1.0, column_scale * factor).astype(np.float64)
    cost = program.cost * column_scale
    top = float(np.max(np.abs(cost), initial=0.0))
    cost_scale = float(2.0 ** -np.round(np.log2(top))) if top > 0 else 1.0
    scaled = replace(
        program,
        cost=cost * cost_scale,
        lower=program.lower / column_scale,
        upper=program.upper / column_scale,
        row_lower=program.row_lower * row_scale,
        row_upper=program.row_upper * row_scale,
        entry_values=values * row_scale[rows] * column_scale[columns],
    )
    return scaled, column_scale, cost_scale


def _balance(groups: Ints, sizes: Floats, num_groups: int) -> Floats:
    """Return per group one over the geometric mean of its extreme sizes, as a power of two."""
    log = np.log2(sizes)
    low, high = np.full(num_groups, np.inf), np.full(num_groups, -np.inf)
    np.minimum.at(low, groups, log)
    np.maximum.at(high, groups, log)
    middle = np.where(np.isfinite(low), 0.5 * (np.where(np.isfinite(low), low + high, 0.0)), 0.0)
    factor: Floats = np.exp2(-np.round(middle)).astype(np.float64)
    return factor


def lp_text(program: Program) -> str:
    """Return the program in CPLEX LP format with its own names, for golden files and for people."""
    columns = [_lp_name(n) for n in program.column_names]
    lines = ["Minimize", f" cost: {_lp_terms(columns, np.arange(len(columns)), program.cost)}", "Subject To"]
    for name, (index, value), low, high in zip(
        program.row_names, program.rows(), program.row_lower, program.row_upper, strict=True
    ):
        body = _lp_terms(columns, index, value)
        if low == high:
            lines.append(f" {_lp_name(name)}: {body} = {low:.12g}")
            continue
        if np.isfinite(low):
            lines.append(f" {_lp_name(name)}{'_low' if np.isfinite(high) else ''}: {body} >= {low:.12g}")
        if np.isfinite(high):
            lines.append(f" {_lp_name(name)}{'_high' if np.isfinite(low) else ''}: {body} <= {high:.12g}")
    lines.append("Bounds")
    for name, low, high in zip(columns, program.lower, program.upper, strict=True):
        left = "-inf" if np.isneginf(low) else f"{low:.12g}"
        right = "+inf" if np.isposinf(high) else f"{high:.12g}"
        lines.append(f" {left} <= {name} <= {right}")
    whole = [n for n, i in zip(columns, program.integer, strict=True) if i]
    if whole:
        lines += ["General", *(f" {n}" for n in whole)]
    return "\n".join([*lines, "End", ""])


def _lp_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.#]", "_", name)


def _lp_terms(columns: list[str], index: Ints, values: Floats) -> str:
    terms = [f"{v:+.12g} {columns[j]}" for j, v in zip(index.tolist(), values.tolist(), strict=True) if v]
    return " ".join(terms) or f"0 {columns[0]}"
