"""Parse and format quantities with units; the only place that knows 1e9 from 1024.

Inside Meshwright every number is in SI base units (bytes, seconds, FLOP/s, watts). Text with units is
parsed here, at the door. ``GB`` is 1e9 bytes, ``GiB`` is 2**30 bytes; a lower-case ``b`` (bits) is rejected.
"""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

__all__ = [
    "Bytes",
    "BytesPerSecond",
    "FlopsPerSecond",
    "Seconds",
    "UsdPerHour",
    "Watts",
    "format_quantity",
    "parse_quantity",
]

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_SMALL = {"m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9}

_UNITS: dict[str, dict[str, float]] = {
    "B": {f"{p}B": v for p, v in (_DECIMAL | _BINARY).items()},
    "B/s": {f"{p}B/s": v for p, v in (_DECIMAL | _BINARY).items()},
    "FLOP/s": {f"{p}FLOP/s": v for p, v in _DECIMAL.items()} | {f"{p}FLOPS": v for p, v in _DECIMAL.items()},
    "s": {f"{p}s": v for p, v in ({"": 1.0} | _SMALL).items()} | {"min": 60.0, "h": 3600.0},
    "W": {f"{p}W": v for p, v in ({"": 1.0, "m": 1e-3} | {k: _DECIMAL[k] for k in ("k", "M")}).items()},
    "USD/h": {"USD/h": 1.0},
}
_EXAMPLE = {
    "B": "80 GB",
    "B/s": "450 GB/s",
    "FLOP/s": "989 TFLOP/s",
    "s": "5 us",
    "W": "700 W",
    "USD/h": "2.5 USD/h",
}
_NUMBER = re.compile(r"\s*([-+]?\d[\d_]*(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*(\S*)\s*$")


def parse_quantity(value: object, unit: str) -> float:
    """Return `value` in the base unit `unit`; text needs its unit written, a number is taken as base units.

    Raises
    ------
    ValueError
        if the text is no number with an accepted unit; the message gives an example.

    Examples
    --------
    >>> parse_quantity("80 GB", "B")
    80000000000.0
    >>> parse_quantity("5 us", "s")
    5e-06
    """
    if isinstance(value, bool):
        message = f"{value!r} is not a quantity in {unit} (for example '{_EXAMPLE[unit]}')"
        raise ValueError(message)
    if isinstance(value, int | float):
        return float(value)
    match = _NUMBER.match(value) if isinstance(value, str) else None
    scale = _UNITS[unit].get(match.group(2)) if match else None
    if match is None or scale is None:
        message = f"{value!r} is not a quantity in {unit} (for example '{_EXAMPLE[unit]}')"
        raise ValueError(message)
    return float(match.group(1).replace("_", "")) * scale


def format_quantity(value: float, unit: str, *, digits: int = 3) -> str:
    """Return `value` with a readable prefix, for example ``80 GB`` for 8e10 and ``B``."""
    if value == 0 or value != value:
        return f"{value:g} {unit}"
    table = {p: s for p, s in (_SMALL.items() if unit == "s" else _DECIMAL.items()) if p != "µ"} | {"": 1.0}
    fitting = [(s, p) for p, s in table.items() if abs(value) >= s * 0.9995]
    scale, prefix = max(fitting) if fitting else min((s, p) for p, s in table.items())
    return f"{value / scale:.{digits}g} {prefix}{unit}"


def _quantity(unit: str) -> BeforeValidator:
    return BeforeValidator(lambda value: parse_quantity(value, unit))


Bytes = Annotated[float, _quantity("B"), Field(gt=0)]
BytesPerSecond = Annotated[float, _quantity("B/s"), Field(gt=0)]
FlopsPerSecond = Annotated[float, _quantity("FLOP/s"), Field(gt=0)]
Seconds = Annotated[float, _quantity("s"), Field(ge=0)]
Watts = Annotated[float, _quantity("W"), Field(gt=0)]
UsdPerHour = Annotated[float, _quantity("USD/h"), Field(ge=0)]
