"""The fleet and the targets of a serving plan file."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from costmodels.job import Slo
from hardware.errors import InputError, SpecError
from hardware.schema import validate
from planner.simulate.fleet import Fleet
from planner.simulate.fleet_file import EngineEntry, FleetFile, fleet_from_file

__all__ = ["read_plan_fleet"]

_ENGINE_KEYS = {f.name for f in fields(EngineEntry)}


def read_plan_fleet(path: Path) -> tuple[Fleet, Slo | None]:
    """Return the fleet of the first plan in a serving plan file, and the targets it was planned for.

    Raises
    ------
    SpecError
        if the file is no serving plan or lacks what a fleet needs.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror})"
        raise InputError(message) from error
    except ValueError as error:
        message = f"{path}: no JSON ({error})"
        raise InputError(message) from error
    if not isinstance(document, dict) or document.get("kind") != "serve":
        kind = document.get("kind") if isinstance(document, dict) else type(document).__name__
        raise SpecError(str(path), [f"kind: {kind!r} cannot be simulated; a plan of `plan serve` is needed"])
    plans = document.get("plans") or []
    if not plans:
        raise SpecError(str(path), ["plans: holds no plan to simulate"])
    request = document.get("request", {})
    entry = validate(FleetFile, _fleet_entry(plans[0], request), str(path), prefix="plans.0")
    return fleet_from_file(entry, where=str(path), folder=path.parent), _slo(request, str(path))


def _fleet_entry(plan: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Return the plan's mix in the form of a fleet file."""
    pools = []
    for number, part in enumerate(plan.get("mix", [])):
        engine = {k: v for k, v in part.get("engine", {}).items() if k in _ENGINE_KEYS and v is not None}
        engine.setdefault("model", part.get("model", request.get("model")))
        engine.setdefault("device", part.get("device"))
        if "role" in part:
            engine.setdefault("role", part["role"])
        pools.append(
            {
                "name": part.get("name", f"{part.get('device')}-{number}"),
                "count": part["count"],
                "engine": engine,
            }
        )
    routing = plan.get("routing", {})
    entry: dict[str, Any] = {"pools": pools}
    for key in ("router", "decode_router", "shares"):
        if routing.get(key):
            entry[key] = routing[key]
    return entry


def _slo(request: dict[str, Any], where: str) -> Slo | None:
    names = {"slo_ttft_s": "ttft_s", "slo_tpot_s": "tpot_s", "slo_e2e_s": "e2e_s", "slo_itl_s": "itl_s"}
    targets = {field: request[key] for key, field in names.items() if request.get(key) is not None}
    if not targets:
        return None
    try:
        return Slo(**targets, percentile=float(request.get("percentile", 99.0)))
    except (TypeError, ValueError) as error:
        raise SpecError(where, [f"request: {error}"]) from None
