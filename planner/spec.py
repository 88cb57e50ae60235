"""Small values built from what a person typed, with the place named when they are wrong."""

from collections.abc import Callable
from typing import TypeVar

from hardware.errors import SpecError

__all__ = ["spec_value"]

T = TypeVar("T")


def spec_value(where: str, build: Callable[[], object], kind: type[T]) -> T:
    """Return what `build` returns.

    Raises
    ------
    SpecError
        naming `where`, if `build` refuses its input.
    """
    try:
        value = build()
    except ValueError as error:
        raise SpecError(where, [str(error)]) from None
    if not isinstance(value, kind):
        raise SpecError(where, [f"{value!r} is no {kind.__name__}"])
    return value
