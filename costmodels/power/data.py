"""Read the fitted power coefficients that ship with the package."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

__all__ = ["read_power_coefficients"]


@cache
def read_power_coefficients(name: str) -> dict[str, Any]:
    """Return the document ``data/coefficients/power/<name>.json``: coefficients with their provenance."""
    text = (files("costmodels") / "data" / "coefficients" / "power" / f"{name}.json").read_text(
        encoding="utf-8"
    )
    document: dict[str, Any] = json.loads(text)
    return document
