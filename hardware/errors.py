"""The errors that Meshwright raises, all of them.

::

    PlannerError                 anything that Meshwright itself reports
    ├── InputError               what was asked cannot be read           (exit code 2)
    │   ├── SpecError            a file or request has wrong content, all problems at once
    │   └── UnknownNameError     a name that no catalogue holds, with near misses
    ├── OutOfDomainError         a model was asked outside what it can answer   (exit code 2)
    ├── InfeasibleError          the question is clear and nothing satisfies it (exit code 3)
    └── SolverError              a solver gave no usable answer                 (exit code 4)

A message says what was wrong, where (file and dotted key) and what would be accepted.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

__all__ = [
    "InfeasibleError",
    "InputError",
    "OutOfDomainError",
    "PlannerError",
    "SolverError",
    "SpecError",
    "UnknownNameError",
]


class PlannerError(Exception):
    """Anything that Meshwright reports about a question, rather than about itself."""

    exit_code = 2


class InputError(PlannerError):
    """What was asked cannot be read or is not allowed."""


class SpecError(InputError):
    """A file or a request with wrong content; carries every problem that was found in it.

    Parameters
    ----------
    where : the file or the request that holds the problems.
    problems : one sentence per problem, each naming its dotted key, value and what is accepted.
    """

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.where = where
        self.problems = tuple(problems)
        lines = self.problems[0] if len(self.problems) == 1 else "".join(f"\n  - {p}" for p in self.problems)
        super().__init__(f"{where}: {lines}")


_NAMES_SHOWN = 40


class UnknownNameError(InputError):
    """A name that the catalogue does not hold; suggests the nearest ones.

    Parameters
    ----------
    kind : what was looked for, for example "device".
    name : the name as it was given.
    known : the names that would have been accepted.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.known = tuple(sorted(known))
        near = get_close_matches(name.lower(), self.known, n=3, cutoff=0.5)
        more = len(self.known) - _NAMES_SHOWN
        shown = ", ".join(self.known[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {shown}"
        super().__init__(f"no {kind} is called {name!r}; {hint}")


class OutOfDomainError(PlannerError):
    """A model was asked for something outside the range it can answer."""


class InfeasibleError(PlannerError):
    """The question is clear, and nothing satisfies it.

    Parameters
    ----------
    message : what cannot be satisfied and what would make it so.
    conflict : the named rules or rows that together exclude every answer.
    """

    exit_code = 3

    def __init__(self, message: str, conflict: Sequence[str] = ()) -> None:
        self.conflict = tuple(conflict)
        super().__init__(message)


class SolverError(PlannerError):
    """A solver stopped without a usable answer."""

    exit_code = 4
