"""Values that stand in for shipped ones for a while: what a calibration says of a device, a link or a stack.

A look-up asks here first, by the type and name of what it is about to return. This module knows none of those
types, so that whoever looks up and whoever replaces need not import each other.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

__all__ = ["in_force", "standing_in"]

Value = TypeVar("Value")

_STANDING_IN: ContextVar[Mapping[tuple[type, str], Any] | None] = ContextVar("standing_in", default=None)


def in_force(kind: type[Value], name: str) -> Value | None:
    """Return what stands in for the `kind` of that name, None for nothing.

    Examples
    --------
    >>> with standing_in({(int, "answer"): 42}):
    ...     in_force(int, "answer"), in_force(int, "question")
    (42, None)
    """
    values = _STANDING_IN.get()
    return None if values is None else values.get((kind, name))


@contextmanager
def standing_in(values: Mapping[tuple[type, str], Any]) -> Iterator[None]:
    """Let `values`, by type and name, and nothing else, stand in inside the ``with`` block."""
    token = _STANDING_IN.set(values)
    try:
        yield
    finally:
        _STANDING_IN.reset(token)
