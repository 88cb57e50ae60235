"""Read tables of measured runs: located errors, typed columns, and defaults that are counted."""

import csv
import gzip
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hardware.errors import SpecError

__all__ = ["RunRow", "RunTable", "read_run_table"]


@dataclass(slots=True)
class RunRow:
    """One row of a table; asking for a blank cell with a default counts that default."""

    values: dict[str, str]
    where: str
    line: int
    filled: Counter[str]

    def text(self, column: str, default: str = "") -> str:
        """Return a cell, or `default` where it is blank or the column is absent."""
        value = (self.values.get(column) or "").strip()
        if not value and default:
            self.filled[f"{column}={default}"] += 1
        return value or default

    def number(self, column: str, default: float | None = None) -> float:
        """Return a numeric cell.

        Raises
        ------
        SpecError
            if the cell is no number, or is blank without a default.
        """
        value = (self.values.get(column) or "").strip()
        if not value:
            if default is None:
                raise SpecError(self.where, [f"line {self.line}, {column}: blank, a number is needed"])
            self.filled[f"{column}={default:g}"] += 1
            return default
        try:
            return float(value)
        except ValueError:
            problem = f"line {self.line}, {column}: {value!r} is not a number"
            raise SpecError(self.where, [problem]) from None

    def optional(self, column: str) -> float | None:
        """Return a numeric cell, or None where it is blank."""
        return self.number(column) if (self.values.get(column) or "").strip() else None

    def whole(self, column: str, default: int | None = None) -> int:
        """Return a numeric cell that must be a whole number of at least zero."""
        value = self.number(column, default)
        if value != int(value) or value < 0:
            problem = f"line {self.line}, {column}: {value:g} is not a whole number of at least 0"
            raise SpecError(self.where, [problem])
        return int(value)


@dataclass(frozen=True, slots=True)
class RunTable:
    """All rows of one file, with its name and the defaults that reading them has used."""

    path: str
    rows: tuple[RunRow, ...]
    filled: Counter[str] = field(default_factory=Counter)


def read_run_table(path: Path | str, needed: tuple[str, ...], *, by: str | None = None) -> RunTable:
    """Return the rows of a CSV file (gzip too).

    Parameters
    ----------
    needed : columns that must be there.
    by : a column that the rows are to be split by, where the caller was asked to.

    Raises
    ------
    SpecError
        if the file cannot be read as CSV, a needed column is missing, or a row has too many cells.
    """
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            columns = tuple(reader.fieldnames or ())
            records = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(str(path), [f"cannot be read as CSV: {error}"]) from None
    if by is not None and by not in columns:
        problem = f"--by: no column is called {by!r}; columns found: {', '.join(columns)}"
        raise SpecError(str(path), [problem])
    missing = [c for c in needed if c not in columns]
    if missing:
        problems = [
            f"column {c!r} is missing; columns found: {', '.join(columns) or 'none'}" for c in missing
        ]
        raise SpecError(str(path), problems)
    long = [i for i, r in enumerate(records, start=2) if None in r]
    if long:
        raise SpecError(str(path), [f"line {i}: more cells than columns" for i in long[:5]])
    filled: Counter[str] = Counter()
    rows = tuple(RunRow(r, str(path), i, filled) for i, r in enumerate(records, start=2))
    return RunTable(path=str(path), rows=rows, filled=filled)
