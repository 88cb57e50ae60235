"""A small language for what a value may be: ``int>=1``, ``float 0..1``, ``text``, ``json``, ``a|b|c``."""

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

__all__ = ["key_problem", "shape_problems", "text_problem"]

_INT = re.compile(r"int(?:>=(-?\d+))?$")
_FLOAT = re.compile(r"float (\S+)\.\.(\S+)$")


def text_problem(text: str, form: str) -> str | None:
    """Return why `text`, one word of a command line, is not of `form`; None if it is."""
    if text.startswith("$"):
        return None  # filled in when the script runs
    if match := _INT.match(form):
        if not re.fullmatch(r"-?\d+", text):
            return f"{text!r} is not an integer"
        least = match.group(1)
        return f"{text} is below {least}" if least is not None and int(text) < int(least) else None
    if match := _FLOAT.match(form):
        try:
            value = float(text)
        except ValueError:
            return f"{text!r} is not a number"
        low, high = float(match.group(1)), float(match.group(2))
        return None if low <= value <= high else f"{text} lies outside {low:g} to {high:g}"
    if form == "json":
        try:
            json.loads(text)
        except ValueError as error:
            return f"{text!r} is no JSON ({error})"
        return None
    if form == "text":
        return None
    choices = form.split("|")
    return None if text in choices else f"{text!r} is none of {', '.join(choices)}"


def key_problem(name: str, known: list[str]) -> str:
    """Return the sentence for an unknown name, with the nearest known one."""
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"{name}: not known{f' (did you mean {near[0]}?)' if near else ''}"


def shape_problems(value: Any, form: Any, where: str = "") -> list[str]:
    """Return every way in which `value`, read from YAML or JSON, is not of `form`.

    A mapping of forms gives the keys (those ending in ``~`` may be missing, no others may appear; a key ``*``
    stands for any name), a list of one form gives the entries, text gives the value: ``bool``, ``any``, or
    one of the forms of `text_problem`.
    """
    if isinstance(form, Mapping):
        return _mapping_problems(value, form, where)
    if isinstance(form, list):
        if not isinstance(value, list):
            return [f"{where}: {value!r} is no list"]
        return [p for i, entry in enumerate(value) for p in shape_problems(entry, form[0], f"{where}.{i}")]
    if form == "any":
        return []
    if form == "bool":
        return [] if isinstance(value, bool) else [f"{where}: {value!r} is not true or false"]
    return _scalar_problems(value, str(form), where)


def _scalar_problems(value: Any, form: str, where: str) -> list[str]:
    number = form.startswith(("int", "float"))
    wrong = isinstance(value, bool) or (number != isinstance(value, int | float))
    if wrong or (form.startswith("int") and not isinstance(value, int)):
        return [f"{where}: {value!r} is not of the form {form}"]
    problem = text_problem(str(value), form)
    return [f"{where}: {problem}"] if problem else []


def _mapping_problems(value: Any, form: Mapping[str, Any], where: str) -> list[str]:
    if not isinstance(value, Mapping):
        return [f"{where}: {value!r} is no mapping"]
    if set(form) == {"*"}:
        return [p for k, v in value.items() for p in shape_problems(v, form["*"], f"{where}.{k}".strip("."))]
    forms = {key.removesuffix("~"): entry for key, entry in form.items()}
    required = [key for key in form if not key.endswith("~")]
    dot = f"{where}." if where else ""
    problems = [f"{dot}{key_problem(str(k), list(forms))}" for k in value if k not in forms]
    problems += [f"{dot}{key}: is missing" for key in required if key not in value]
    for key, entry in value.items():
        if key in forms:
            problems += shape_problems(entry, forms[key], f"{dot}{key}")
    return problems
