"""The load over a day: hours at which share of the peak."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

__all__ = ["LoadHours", "day_problems"]

HOURS_PER_DAY = 24.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadHours:
    """Hours of equal load."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    rate_frac: Annotated[float, Field(gt=0, le=1)]
    """Of the peak, which is the rate of the request."""
    hours_per_day: Annotated[float, Field(gt=0, le=HOURS_PER_DAY)]

    @property
    def time_frac(self) -> float:
        """Share of the day."""
        return self.hours_per_day / HOURS_PER_DAY


def day_problems(levels: tuple[LoadHours, ...]) -> list[str]:
    """Return why levels do not make a day, in words; empty where they do or there are none."""
    if not levels:
        return []
    fracs = [level.rate_frac for level in levels]
    hours = sum(level.hours_per_day for level in levels)
    problems = []
    if not math.isclose(hours, HOURS_PER_DAY, rel_tol=1e-6):
        problems.append(f"load_levels: hours_per_day of all together are {hours:g}, not 24")
    if max(fracs) != 1.0:
        problems.append(f"load_levels: the largest rate_frac is {max(fracs):g}; one must be the peak, 1")
    if len(set(fracs)) < len(fracs):
        problems.append(f"load_levels: a rate_frac appears twice in {', '.join(f'{f:g}' for f in fracs)}")
    return problems
