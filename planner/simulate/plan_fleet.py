"""The fleet and the targets of a serving plan file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from costmodels.job import Slo
from hardware.errors import InputError, SpecError
from hardware.schema import validate
from planner.simulate.fleet import Fleet
from planner.simulate.fleet_entries import FleetFile
from planner.simulate.fleet_file import fleet_from_file
from planner.simulate.settings import Speculation

__all__ = ["plan_fleet_text", "read_plan_fleet"]

_NO_LIMIT = 1 << 40


def read_plan_fleet(path: Path) -> tuple[Fleet, Slo | None]:
    """Return the fleet of the first plan in a serving plan file, and the targets it was planned for.

    Raises
    ------
    SpecError
        if the file is no serving plan or lacks what a fleet needs.
    """
    document, request = _fleet_document(path)
    entry = validate(FleetFile, document, str(path), prefix="plans.0")
    return fleet_from_file(entry, where=str(path), folder=path.parent), _slo(request, str(path))


def plan_fleet_text(path: Path) -> str:
    """Return the fleet of the first plan in a serving plan file as the text of a fleet file."""
    document, _ = _fleet_document(path)
    return f"# The fleet of {path.name}; see `meshwright simulate --fleet`.\n" + yaml.safe_dump(
        document, sort_keys=False
    )


def _fleet_document(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a plan's fleet in the form of a fleet file, and the plan's request."""
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
    whole = _not_one_fleet(plans[0])
    if whole:
        raise SpecError(str(path), [f"plans.0: {whole}"])
    try:
        return _fleet_entry(plans[0], request), request
    except (KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            str(path), [f"plans.0: is no serving plan ({error!r} in its mix or routing)"]
        ) from None


def _not_one_fleet(plan: dict[str, Any]) -> str:
    """Return why a plan cannot be replayed as one fleet of one model; empty where it can."""
    if plan.get("layers"):
        return "spreads one model's layers over unlike machines, which is not simulated"
    models = dict.fromkeys(part.get("model") for part in plan.get("mix", []) if part.get("model"))
    if models:
        return f"serves {', '.join(models)}; `plan serve -o` wrote one file for each, simulate those"
    return ""


def _fleet_entry(plan: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Return the plan's mix and routes in the form of a fleet file."""
    stack = plan.get("strategy", {}).get("engine", "vllm")
    pools = [_pool_entry(part, request, stack) for part in plan.get("mix", [])]
    entry: dict[str, Any] = {"pools": pools, "catalogs": request.get("catalog", []), "router": "prefix"}
    doors = [part["name"] for part in plan.get("mix", []) if part.get("role") != "decode"]
    if len(doors) > 1:
        entry["router"] = "size"
        entry["shares"] = [
            [
                route.get("prompt_tokens_up_to") or _NO_LIMIT,
                route.get("output_tokens_up_to") or _NO_LIMIT,
                [float(route["shares"].get(pool["name"], 0.0)) for pool in pools],
            ]
            for route in plan.get("routing", [])
            if route.get("role") != "decode"
        ]
    return entry


def _pool_entry(part: dict[str, Any], request: dict[str, Any], stack: str) -> dict[str, Any]:
    config = dict(part.get("config", {}))
    engine = {
        "model": request.get("model"),
        "device": part.get("device"),
        "stack": stack,
        "role": part.get("role", "both"),
        "policy": "vllm" if config.pop("chunked", True) else "prefill-first",
        "usd_per_hour": part["usd_per_hour"] / part["devices_per_instance"],
    }
    for theirs, ours in (("max_batch", "max_seqs"), ("draft_tokens", "speculative_tokens")):
        if theirs in config:
            engine[ours] = config.pop(theirs)
    drafts = engine.get("speculative_tokens", 0)
    if drafts:
        engine["acceptance_frac"] = Speculation.keeping(
            drafts, float(request.get("accepted_tokens", 0.0))
        ).acceptance_frac
    if part.get("cap"):
        engine |= {name: part["cap"][name] for name in ("cap_w", "prefill_frac", "decode_frac")}
    return {"name": part["name"], "count": part["count"], "engine": engine | config}


def _slo(request: dict[str, Any], where: str) -> Slo | None:
    names = {"slo_ttft_s": "ttft_s", "slo_tpot_s": "tpot_s", "slo_e2e_s": "e2e_s", "slo_itl_s": "itl_s"}
    targets = {field: request[key] for key, field in names.items() if request.get(key) is not None}
    if not targets:
        return None
    try:
        return Slo(**targets, percentile=float(request.get("percentile", 99.0)))
    except (TypeError, ValueError) as error:
        raise SpecError(where, [f"request: {error}"]) from None
