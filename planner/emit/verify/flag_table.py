"""Our own tables of a framework's options: spelling, type, choices and range."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from planner.emit.verify.value_forms import key_problem, text_problem

__all__ = ["FlagTable", "flag_table", "read_flags"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagTable:
    """Options by name, each with the form of its value; ``texts`` takes all words up to the next option."""

    name: str
    source: str
    forms: dict[str, str]
    own: dict[str, str]
    """Those of `forms` that the framework adds to the one whose table it extends."""
    words: tuple[str, ...] = ()
    """Words that may stand alone."""


@cache
def flag_table(name: str) -> FlagTable:
    """Return the table of one framework."""
    data = yaml.safe_load(files("planner.emit").joinpath("data", f"{name}.yaml").read_text(encoding="utf-8"))
    base = flag_table(data["extends"]).forms if "extends" in data else {}
    words = tuple(str(data.get("positional", "")).split("|")) if data.get("positional") else ()
    return FlagTable(
        name=name, source=data["source"], forms={**base, **data["flags"]}, own=data["flags"], words=words
    )


def read_flags(words: list[str], table: FlagTable) -> tuple[dict[str, str], list[str]]:
    """Return every option with its value (switches have ""), and what is wrong with the line.

    Abbreviations are refused, though argparse takes them: a later version may make them ambiguous.
    """
    values: dict[str, str] = {}
    problems: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--"):
            if word not in table.words:
                problems.append(f"{word!r}: a value without an option")
            continue
        name, equals, given = word.partition("=")
        if name not in table.forms:
            problems.append(key_problem(name, list(table.forms)))
            while position < len(words) and not words[position].startswith("--"):
                position += 1
            continue
        if name in values:
            problems.append(f"{name}: given twice")
        if table.forms[name] == "switch":
            values[name] = ""
            continue
        if not equals:
            if position >= len(words) or words[position].startswith("--"):
                problems.append(f"{name}: its value is missing")
                continue
            given = words[position]
            position += 1
        values[name] = given
        form = table.forms[name]
        if form == "texts":
            while position < len(words) and not words[position].startswith("--"):
                values[name] += f" {words[position]}"
                position += 1
            continue
        problem = text_problem(given, form)
        if problem:
            problems.append(f"{name}: {problem}")
    return values, problems
