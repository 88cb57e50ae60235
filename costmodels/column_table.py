"""What every table of configurations shares: equal-length integer columns, one row per configuration."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ColumnTable", "Ints"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ColumnTable:
    """A frozen dataclass whose fields are all columns of one length."""

    def __post_init__(self) -> None:
        lengths = {getattr(self, f.name).shape for f in fields(self)}
        if len(lengths) != 1:
            message = f"columns differ in length: {sorted(lengths)}"
            raise ValueError(message)

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def take(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> Self:
        """Return the chosen rows (indices, a mask or a slice), in that order."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @classmethod
    def _from_rows(cls, rows: Sequence[Mapping[str, int]]) -> Self:
        """Return a table with one row per mapping of field to value, in order."""
        return cls(**{f.name: np.array([int(r[f.name]) for r in rows], dtype=np.int64) for f in fields(cls)})

    @classmethod
    def _from_columns(cls, columns: Mapping[str, Ints | int], defaults: Mapping[str, int]) -> Self:
        """Return a table from columns or scalars, filled up with the defaults of its fields."""
        names = [f.name for f in fields(cls)]
        unknown = sorted(set(columns) - set(names))
        if unknown:
            message = f"no column of a {cls.__name__} is called {', '.join(unknown)}"
            raise ValueError(message)
        arrays = np.broadcast_arrays(*(np.asarray(columns.get(n, int(defaults[n]))) for n in names))
        return cls(
            **{n: np.ascontiguousarray(a.ravel(), dtype=np.int64) for n, a in zip(names, arrays, strict=True)}
        )
