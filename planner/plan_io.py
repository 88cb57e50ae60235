"""Read and write plan files: same plan, same bytes; nothing half-written; older versions upgraded."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from errno import EISDIR
from importlib import import_module
from pathlib import Path
from typing import Any

from hardware.errors import InputError, SpecError
from hardware.schema import validate
from planner.plan import SCHEMA_VERSION, PlanFile

__all__ = [
    "PLAN_TYPES",
    "UPGRADES",
    "plan_document",
    "plan_text",
    "plan_type",
    "read_plan",
    "write_plan",
    "write_text",
]

PLAN_TYPES: dict[str, tuple[str, str]] = {
    "train": ("planner.plan", "TrainingPlan"),
    "serve": ("planner.serving.plan", "ServingPlan"),
    "power": ("planner.power.plan", "PowerPlan"),
}
"""Module and class of one plan, by the kind of its file."""

UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From a version to the next: pure functions from document to document."""

_EXPANDED_DEPTH = 5
"""Nesting down to which every entry gets its own line; deeper values (one rank, one part) stay on one."""


def plan_document(value: object) -> Any:
    """Return `value` as JSON types: dataclasses as objects, enums as lower-case names, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plan_document(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plan_document(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plan_document(v) for v in value]
    if isinstance(value, Enum):
        return value.value if isinstance(value, str) else value.name.lower()
    return value


def plan_text(plan: object) -> str:
    """Return the file's exact text; the same plan always gives the same text."""
    return _json_text(plan_document(plan), 0) + "\n"


def _json_text(value: Any, depth: int) -> str:
    if depth >= _EXPANDED_DEPTH or not isinstance(value, dict | list) or not value:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    pad = "  " * (depth + 1)
    if isinstance(value, dict):
        lines = [
            f"{pad}{json.dumps(k, ensure_ascii=False)}: {_json_text(v, depth + 1)}" for k, v in value.items()
        ]
        return "{\n" + ",\n".join(lines) + "\n" + "  " * depth + "}"
    lines = [pad + _json_text(v, depth + 1) for v in value]
    return "[\n" + ",\n".join(lines) + "\n" + "  " * depth + "]"


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write `text` under a temporary name beside `path`, then rename it, so that no half file is ever seen.

    Raises
    ------
    InputError
        if the folder does not exist or cannot be written.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        if target.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder; name a file")
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}.", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        message = f"{target}: cannot be written: {error.strerror}"
        raise InputError(message) from None


def write_plan(plan: PlanFile[Any], path: str | os.PathLike[str]) -> None:
    """Write a plan file; the folder must exist."""
    write_text(plan_text(plan), path)


def read_plan(path: str | os.PathLike[str]) -> PlanFile[Any]:
    """Return the plan in a file of this or an older version.

    Raises
    ------
    InputError
        if the file cannot be read, is no JSON, or comes from a newer version.
    SpecError
        if its content is wrong; names every wrong key.
    """
    document = _load(path)
    version = document.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        given = "is missing" if version is None else f"{version!r} is not a version"
        problem = f"schema_version: {given}; this Meshwright reads 1 to {SCHEMA_VERSION}"
        raise SpecError(str(path), [problem])
    if version > SCHEMA_VERSION:
        message = (
            f"{path}: schema_version {version} is newer than this Meshwright, which reads 1 to "
            f"{SCHEMA_VERSION}; upgrade Meshwright or plan again"
        )
        raise InputError(message)
    while version < SCHEMA_VERSION:
        document = UPGRADES[version](document)
        version += 1
    kind = document.get("kind")
    if kind not in PLAN_TYPES:
        raise SpecError(str(path), [f"kind: {kind!r} is none of {', '.join(PLAN_TYPES)}"])
    return _validated(document, plan_type(kind), str(path))


def plan_type(kind: str) -> Any:
    """Return the type of a plan file of that kind."""
    module, name = PLAN_TYPES[kind]
    return PlanFile[getattr(import_module(module), name)]  # type: ignore[misc]


def _load(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
        raise InputError(message) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        message = f"{path}: is not a plan file (JSON): {error}"
        raise InputError(message) from None
    if not isinstance(document, dict):
        raise SpecError(str(path), ["a plan file holds one JSON object"])
    return document


def _validated(document: dict[str, Any], kind: Any, where: str) -> PlanFile[Any]:
    known = [f.name for f in fields(PlanFile)]
    problems = [f"{key}: unexpected key (known: {', '.join(known)})" for key in document if key not in known]
    try:
        plan: PlanFile[Any] = validate(kind, {k: v for k, v in document.items() if k in known}, where)
    except SpecError as error:
        raise SpecError(where, [*problems, *error.problems]) from None
    if problems:
        raise SpecError(where, problems)
    return plan
