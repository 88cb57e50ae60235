"""JSON schemas of the files that Meshwright reads and writes, made from the types themselves."""

import json
from collections.abc import Callable
from typing import Any

from hardware.errors import UnknownNameError

__all__ = ["SCHEMAS", "schema_text"]


def _plan() -> Any:
    from typing import Union

    from planner.plan_io import PLAN_TYPES, plan_type

    return Union[tuple(plan_type(kind) for kind in PLAN_TYPES)]  # noqa: UP007  (made at run time)


def _request() -> Any:
    from planner.request import TrainRequest

    return TrainRequest


def _cluster() -> Any:
    from hardware.cluster_file import ClusterFile

    return ClusterFile


SCHEMAS: dict[str, Callable[[], Any]] = {"cluster": _cluster, "plan": _plan, "request": _request}
"""Type of each file format, loaded when it is asked for."""


def schema_text(name: str) -> str:
    """Return the JSON schema of `name`: plan, request or cluster.

    Raises
    ------
    UnknownNameError
        for any other name.
    """
    from pydantic import TypeAdapter

    if name not in SCHEMAS:
        raise UnknownNameError("schema", name, SCHEMAS)
    return json.dumps(TypeAdapter(SCHEMAS[name]()).json_schema(), indent=2, sort_keys=True) + "\n"
