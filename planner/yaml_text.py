"""YAML as a mapping of plain values, with the traps of YAML 1.1 closed: no repeated keys, no silent strings."""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from hardware.errors import InputError, SpecError

__all__ = ["read_mapping"]


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping; plain YAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in seen:
                line = key_node.start_mark.line + 1
                message = f"line {line}: the key {key!r} stands twice"
                raise SpecError(str(node.start_mark.name), [message])
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_mapping(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises
    ------
    InputError
        if the file cannot be read, is no YAML, or holds something else than a mapping.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            value = yaml.load(file, _UniqueKeys)  # noqa: S506  (a SafeLoader)
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
        raise InputError(message) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = f"{path}: is not YAML: {' '.join(str(error).split())}"
        raise InputError(message) from None
    if not isinstance(value, dict):
        message = f"{path}: holds {type(value).__name__}, but a mapping of keys to values is needed"
        raise InputError(message)
    return {str(key): entry for key, entry in value.items()}
