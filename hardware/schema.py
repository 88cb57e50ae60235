"""Read YAML files into frozen dataclasses; every problem of a file at once, each with its place.

Why YAML is read with care: a repeated key silently wins, ``no`` is False, ``1:30`` is 90, and ``989e12`` is
text. Repeated keys are rejected here; quantities are text with units, so the other traps cannot bite.
"""

from collections.abc import Hashable, Iterable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from hardware.errors import SpecError

__all__ = ["problems_of", "read_yaml", "read_yaml_text", "validate"]

T = TypeVar("T")

_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeyLoader(_BaseLoader):  # type: ignore[misc]
    """A safe loader that refuses a key written twice."""


def _construct_mapping(loader: Any, node: yaml.MappingNode) -> dict[Hashable, object]:
    loader.flatten_mapping(node)
    mapping: dict[Hashable, object] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            message = f"line {key_node.start_mark.line + 1}: key {key!r} is not text (put it in quotes)"
            raise _KeyProblemError(message)
        if key in mapping:
            message = f"line {key_node.start_mark.line + 1}: key {key!r} is given twice"
            raise _KeyProblemError(message)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


class _KeyProblemError(Exception):
    """A mapping key that cannot be used; becomes a SpecError with the file's name."""


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def read_yaml_text(text: str, where: str) -> dict[str, Any]:
    """Return the mapping that `text` holds.

    Raises
    ------
    SpecError
        if it is no YAML, no mapping, or repeats a key; `where` names the file.
    """
    try:
        data = yaml.load(text, Loader=_UniqueKeyLoader)
    except _KeyProblemError as error:
        raise SpecError(where, [str(error)]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise SpecError(where, [f"{line}not readable as YAML ({getattr(error, 'problem', error)})"]) from None
    if not isinstance(data, dict):
        raise SpecError(where, [f"expected a mapping of keys and values, found {type(data).__name__}"])
    return data


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in the YAML file `path`.

    Raises
    ------
    SpecError
        if the file cannot be read or does not hold one mapping with unique keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecError(str(path), [f"cannot be read ({reason})"]) from None
    return read_yaml_text(text, str(path))


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def validate(kind: type[T], data: object, where: str, *, prefix: str = "") -> T:
    """Return `data` as a `kind`, a frozen dataclass.

    Parameters
    ----------
    where : the file, for messages.
    prefix : dotted key of `data` inside the file, for messages.

    Raises
    ------
    SpecError
        with one sentence per problem.
    """
    try:
        value: T = _adapter(cast("Any", kind)).validate_python(data)
    except ValidationError as error:
        raise SpecError(where, problems_of(error, kind, data, prefix=prefix)) from None
    return value


def problems_of(error: ValidationError, kind: Any, data: object, *, prefix: str = "") -> list[str]:
    """Return one sentence per problem of `error`: dotted key, value, what is accepted."""
    problems = []
    items = error.errors(include_url=False)
    places = [item["loc"] for item in items]
    for item in items:
        if item["type"] == "too_short" and any(
            place[: len(item["loc"])] == item["loc"] != place for place in places
        ):
            continue  # pydantic counts the entries that it just refused as missing
        location = [step for step in item["loc"] if not _is_union_tag(step)]
        key = ".".join([*([prefix] if prefix else []), *(str(step) for step in location)])
        problems.append(_sentence(item, key, location, kind))
    return list(dict.fromkeys(problems))


def _sentence(item: Any, key: str, location: list[Any], kind: Any) -> str:
    place = f"{key}: " if key else ""
    match item["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            known = _field_names(kind, location[:-1])
            near = get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"accepted: {', '.join(sorted(known))}"
            return f"{place}unexpected key ({hint})"
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            return f"{place}is missing"
        case "value_error":
            return f"{place}{item['ctx']['error']}"
        case "greater_than" | "greater_than_equal":
            return f"{place}{item['input']!r} is too small; {item['msg'][0].lower()}{item['msg'][1:]}"
        case _:
            accepted = item["msg"].replace("valid tuple", "list").replace("valid dictionary", "mapping")
            return f"{place}{item['input']!r} is not accepted; {accepted[0].lower()}{accepted[1:]}"


def _is_union_tag(step: object) -> bool:
    """Return whether a location step names a branch of a union rather than a key of the file."""
    return isinstance(step, str) and ("[" in step or step in {"float", "int", "str", "none"})


def _field_names(kind: Any, location: Iterable[object]) -> list[str]:
    """Return the field names of the dataclass that `location` leads to inside `kind`."""
    for step in location:
        kind = _inner(get_type_hints(kind)[step]) if isinstance(step, str) and is_dataclass(kind) else kind
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []


def _inner(hint: Any) -> Any:
    """Return the dataclass inside tuple[X, ...], X | None, Annotated[X, ...], or the hint itself."""
    if is_dataclass(hint):
        return hint
    for argument in get_args(hint):
        found = _inner(argument)
        if is_dataclass(found):
            return found
    return hint
