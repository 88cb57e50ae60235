"""What an emitter returns: the text of every file, and what of the plan the files could not express."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hardware.errors import InputError

__all__ = ["Caveat", "Emission", "Origin", "header", "require_expressible"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caveat:
    """One planned feature that the target lacks, or takes in another form."""

    feature: str
    """Name in the plan, for example `strategy.overlap_tp`."""
    instead: str
    """What the files do in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which plan, and for which version of which framework; every file's header says so."""

    plan_sha256: str
    """Of the plan file's bytes."""
    plan_number: int
    target: str
    version: str
    tool_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """Files by name (text), which of them are commands, and the caveats."""

    files: Mapping[str, str]
    commands: frozenset[str] = frozenset()
    """Files that are started, hence executable."""
    caveats: tuple[Caveat, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    """What `verify` needs to know besides the files' own text."""


def header(origin: Origin, caveats: Iterable[Caveat] = (), *, mark: str = "#") -> str:
    """Return the comment lines that open a file: the plan's hash, the versions, what is not expressed."""
    number = f", plan #{origin.plan_number}" if origin.plan_number > 1 else ""
    lines = [
        f"Made by meshwright {origin.tool_version} for {origin.target} {origin.version}.",
        f"Plan: sha256 {origin.plan_sha256}{number}",
        *(f"Not expressed: {c.feature}; {c.instead}." for c in caveats),
    ]
    return "".join(f"{mark} {line}\n" for line in lines)


def require_expressible(target: str, caveats: tuple[Caveat, ...]) -> None:
    """Raise where a strict emission would lose something.

    Raises
    ------
    InputError
        naming every planned feature that the target lacks.
    """
    if caveats:
        lines = "".join(f"\n  - {c.feature}: {c.instead}" for c in caveats)
        message = f"--strict: {target} cannot express all of the plan:{lines}"
        raise InputError(message)
