"""The interval that predictions carry: 90 % of a normal distribution of logarithms."""

import numpy as np
import numpy.typing as npt

__all__ = ["Z90", "covering_spread"]

Floats = npt.NDArray[np.float64]

Z90 = 1.645
"""Standard deviations on either side of the middle that hold 90 % of a normal distribution."""


def covering_spread(
    error: Floats, variance: Floats, *, share: float, weight: Floats, lever: Floats | float = 1.0
) -> float:
    r"""Return the least spread that, added to known variances, makes the 90 % interval hold enough errors.

    Error :math:`e` of variance :math:`v` is held by :math:`\tau` where
    :math:`e^2 \le z_{90}^2 (v + \tau^2 l^2)`, so the answer is a quantile over the errors; zero where there
    are none.

    Parameters
    ----------
    error : errors of logarithms. shape (rows,)
    variance : what is known to spread them. shape (rows,)
    share : of the weight of all errors, how much must be held.
    weight : how much each error counts. shape (rows,)
    lever : what the spread is multiplied by for each error. shape (rows,)
    """
    if not len(error):
        return 0.0
    needed = np.maximum((error / Z90) ** 2 - variance, 0.0) / np.square(lever)
    order = np.argsort(needed)
    held = np.cumsum(weight[order]) / weight.sum()
    last = min(int(np.searchsorted(held, share)), len(order) - 1)
    return float(np.sqrt(needed[order][last]))
