"""Distinct keys of a table of strategies, so that costly pieces are computed once and gathered by row."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from costmodels.strategy import ConfigTable

__all__ = ["Keys", "shard_degree"]

Ints = npt.NDArray[np.int64]
Index = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Keys:
    """Distinct rows of a few columns and where each row of the table finds its own."""

    first: Index
    """A row of the table for each distinct key."""
    inverse: Index
    """The key of each row."""

    @classmethod
    def of(cls, *columns: Ints) -> Self:
        """Return the distinct combinations of `columns` (non-negative integers)."""
        code, spread = np.zeros(len(columns[0]), dtype=np.int64), 1
        for column in columns:
            width = int(column.max(initial=0)) + 1
            if spread * width > np.iinfo(np.int64).max:
                _, code = np.unique(code, return_inverse=True)
                spread = int(code.max(initial=0)) + 1
            code *= width
            code += column
            spread *= width
        _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
        return cls(first=first, inverse=inverse.ravel())


def shard_degree(configs: ConfigTable) -> Ints:
    """Return over how many ranks weights, gradients or optimizer states are cut (1 for ZeRO 0)."""
    full = configs.dp * configs.cp
    chosen = np.where(configs.shard_group > 0, np.minimum(configs.shard_group, full), full)
    return np.where(configs.zero > 0, chosen, 1)
