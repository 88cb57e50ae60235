"""How training software gets faster from release to release.

One configuration on the same devices takes 1.7 % less per month of newer containers in NVIDIA's DGX Cloud
benchmarks and 2.4 % less in Megatron-Bridge's (medians; `benchmarks.training_accuracy` reprints them). Most
of that the coefficients of each stack carry, which stands for the releases of some months; what is left
orders the releases within a stack, and stacks without runs of their own.
"""

import math
import re

__all__ = ["FASTER_PER_MONTH", "NEWEST", "release_months", "release_pace"]

FASTER_PER_MONTH = 0.005
"""Fall of ln(step) per month (assumed: a third of the measured, as kernels have a floor and old releases run
the same ones)."""
NEWEST = "26.06"
"""Release that step times are told for before they are moved to another."""
_MONTHS_PER_PATCH = 0.25
_RELEASE = re.compile(r"v?(\d\d)\.(\d\d)(?:\.(\d\d?))?")


def release_months(release: str) -> float:
    """Return the months from the year 2000 to a container such as ``26.04.01``, a patch being a week.

    Raises
    ------
    ValueError
        if it is none.

    Examples
    --------
    >>> release_months("26.04.01") - release_months("25.04")
    12.25
    """
    match = _RELEASE.fullmatch(release)
    if match is None:
        message = f"release {release!r} is none such as 26.04 or 26.04.01"
        raise ValueError(message)
    year, month, patch = match.groups(default="0")
    return 12.0 * int(year) + int(month) + _MONTHS_PER_PATCH * int(patch)


def release_pace(release: str) -> float:
    """Return the step time of a release over that of `NEWEST`; 1 where there is none."""
    if not release:
        return 1.0
    return math.exp(FASTER_PER_MONTH * (release_months(NEWEST) - release_months(release)))
