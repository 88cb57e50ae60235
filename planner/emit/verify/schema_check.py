"""Every YAML and JSON file of an emission against our own forms: unknown keys, types, ranges."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from planner.emit.verify.emitted import Emitted
from planner.emit.verify.scripts import array_words
from planner.emit.verify.value_forms import shape_problems
from planner.emit.verify.verdict import Verdict

__all__ = ["schema_verdict", "schemas"]


@cache
def schemas() -> dict[str, Any]:
    """Return the forms by file name or kind of object."""
    text = files("planner.emit").joinpath("data", "schemas.yaml").read_text(encoding="utf-8")
    forms: dict[str, Any] = yaml.safe_load(text)
    return forms


def schema_verdict(emitted: Emitted) -> Verdict:
    """Return what our forms say of all structured files."""
    checked, problems = [], []
    for name, text in sorted(emitted.files.items()):
        if (
            name in ("plan.json", "emission.json")
            or name.startswith("power/")
            or not name.endswith((".json", ".yaml"))
        ):
            continue
        checked.append(name)
        problems += [f"{name}: {p}" for p in _file_problems(emitted, name, text)]
    if emitted.target == "megatron-bridge":
        checked.append("train.sh")
        problems += [f"train.sh: {p}" for p in _override_problems(emitted.files.get("train.sh", ""))]
    return Verdict.of("meshwright schemas", emitted.version, tuple(checked), problems)


def _file_problems(emitted: Emitted, name: str, text: str) -> list[str]:
    try:
        documents = [json.loads(text)] if name.endswith(".json") else list(yaml.safe_load_all(text))
    except (ValueError, yaml.YAMLError) as error:
        return [f"cannot be read: {error}"]
    problems = []
    for document in documents:
        form = _form_of(emitted, name, document)
        if form is None:
            problems.append("no form is known for this file")
        else:
            problems += shape_problems(document, form)
    return problems


def _form_of(emitted: Emitted, name: str, document: Any) -> Any:
    if isinstance(document, dict) and "kind" in document:
        return schemas().get(str(document["kind"]))
    if name in schemas():
        return schemas()[name]
    if name.endswith(".sky.yaml"):
        return schemas()["sky.yaml"]
    return schemas()["tensorrt-llm options"] if emitted.target == "tensorrt-llm" else None


def _override_problems(text: str) -> list[str]:
    values = {}
    for word in array_words(text, "ARGS"):
        key, _, value = word.partition("=")
        values[key] = yaml.safe_load(value)
    return shape_problems(values, schemas()["bridge overrides"])
