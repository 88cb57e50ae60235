"""Rows that no other row beats in every objective."""

import numpy as np
import numpy.typing as npt

__all__ = ["pareto_front"]

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]


def pareto_front(first: Floats, second: Floats) -> Index:
    r"""Return the non-dominated rows of two minimised objectives, ascending in the first.

    Row :math:`j` dominates row :math:`i` if it is no worse in both and better in one. Of rows that are
    equal in both, the one that stands first is kept. After sorting by (first, second), a row survives exactly
    when its second objective is below the minimum of all before it: :math:`O(n \log n)`.
    """
    order = np.lexsort((np.arange(len(first)), second, first))
    ranked = second[order]
    best_before = np.concatenate(([np.inf], np.minimum.accumulate(ranked)[:-1])) if len(ranked) else ranked
    front: Index = order[ranked < best_before]
    return front
