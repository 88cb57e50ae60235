"""What a solver answers: a status, perhaps a solution, and how far from the best it can be."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from hardware.errors import InfeasibleError, SolverError

__all__ = ["Outcome", "Status"]

T = TypeVar("T")


class Status(StrEnum):
    """How a solve ended; only OPTIMAL and FEASIBLE carry a solution."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    """A solution with a bound, not proven best (a limit ended the search)."""
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    NO_ANSWER = "no-answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[T]):
    """The answer to one problem. For a minimisation `bound` is never above `objective`."""

    status: Status
    solution: T | None = None
    objective: float | None = None
    bound: float | None = None
    wall_s: float = 0.0
    conflict: tuple[str, ...] = ()
    """Named rows that together exclude every solution."""

    @property
    def gap_frac(self) -> float | None:
        """Relative distance between objective and bound; None without both."""
        if self.objective is None or self.bound is None:
            return None
        return abs(self.objective - self.bound) / max(abs(self.objective), 1e-12)

    def unwrap(self) -> T:
        """Return the solution.

        Raises
        ------
        InfeasibleError
            if no solution exists; names the conflicting rows.
        SolverError
            if the solver stopped without one.
        """
        if self.solution is not None and self.status in (Status.OPTIMAL, Status.FEASIBLE):
            return self.solution
        if self.status is Status.INFEASIBLE:
            rows = ", ".join(self.conflict) or "no conflicting rows could be named"
            message = f"no solution satisfies every constraint ({rows})"
            raise InfeasibleError(message, self.conflict)
        message = f"the solver ended as {self.status.value} without a solution"
        raise SolverError(message)
