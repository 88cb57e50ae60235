"""What one checker said of one emission."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A checker, its version, what it looked at and what it found. Skipped is not passed."""

    checker: str
    version: str
    verdict: Literal["pass", "fail", "skip"]
    files: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """Why it failed, or why it was skipped."""

    @classmethod
    def of(cls, checker: str, version: str, files: tuple[str, ...], problems: list[str]) -> "Verdict":
        """Return pass or fail by whether there are problems."""
        verdict: Literal["pass", "fail"] = "fail" if problems else "pass"
        return cls(checker=checker, version=version, verdict=verdict, files=files, problems=tuple(problems))
