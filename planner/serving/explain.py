"""Why a serving plan is as it is: what each device, form, target and limit is worth."""

from dataclasses import dataclass, replace
from typing import Any

from hardware.errors import InfeasibleError, InputError, SpecError
from hardware.schema import validate
from planner.plan import Check, PlanFile
from planner.serving.flow import plan_serving
from planner.serving.models import ModelDemand
from planner.serving.offers import device_offers
from planner.serving.plan import ServingPlan, ServingPrediction
from planner.serving.request import ServeRequest

__all__ = ["ServingExplanation", "ServingMargin", "explain_serving"]

_LOOSER = 1.25
_TARGETS = ("slo_ttft_s", "slo_tpot_s", "slo_e2e_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingMargin:
    """What one change of the question would bring."""

    change: str
    usd_per_hour: float | None
    """Of the best fleet then; null where none serves the workload."""
    difference_usd_per_hour: float | None
    requests_per_s: float | None = None
    watts: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingExplanation:
    """Why the first plan of a file is the best one."""

    reason: str
    margins: tuple[ServingMargin, ...]
    certificate: tuple[Check, ...]
    assumptions: tuple[str, ...]


def explain_serving(file: PlanFile[ServingPlan]) -> ServingExplanation:
    """Return why the best plan of `file` won; every margin is planned again, without simulation.

    Raises
    ------
    InputError
        if the file is no serving plan.
    """
    if file.kind != "serve":
        message = f"kind: {file.kind!r}; only serving plans (kind 'serve') are explained here"
        raise InputError(message)
    asked = replace(validate(ServeRequest, dict(file.request), "request of the plan"), simulate=False)
    base = plan_serving(asked).plans[0].predicted
    margins = (
        _margin_of("as asked, not simulated", base, base.cost_usd_per_hour),
        *(_margin(name, request, base.cost_usd_per_hour) for name, request in _changes(asked).items()),
    )
    best = file.plans[0]
    return ServingExplanation(
        reason=best.reason,
        margins=margins,
        certificate=best.certificate,
        assumptions=(*file.diagnostics, "margins are planned without simulation, so without its headroom"),
    )


def _margin(change: str, request: ServeRequest, base: float) -> ServingMargin:
    try:
        then = plan_serving(request).plans[0].predicted
    except (InfeasibleError, SpecError):
        return ServingMargin(change=change, usd_per_hour=None, difference_usd_per_hour=None)
    return _margin_of(change, then, base)


def _margin_of(change: str, then: ServingPrediction, base: float) -> ServingMargin:
    return ServingMargin(
        change=change,
        usd_per_hour=then.cost_usd_per_hour,
        difference_usd_per_hour=then.cost_usd_per_hour - base,
        requests_per_s=then.requests_per_s,
        watts=then.watts,
    )


def _changes(asked: ServeRequest) -> dict[str, ServeRequest]:
    """Return the questions beside the one that was asked."""
    changes = {f"without {name}": _without(asked, name) for name in asked.gpus if len(asked.gpus) > 1}
    for name in _TARGETS:
        if getattr(asked, name) is not None or any(getattr(m, name) is not None for m in asked.models):
            changes[f"{name} {_LOOSER:g} times looser"] = _looser(asked, name)
    changes |= {f"{form} form only": _in_form(asked, form) for form in ("joint", "split")}
    for name, none in (("power_budget_w", None), ("spare_instances", 0), ("num_zones", 1)):
        if getattr(asked, name) != none and getattr(asked, name) is not None:
            free: dict[str, Any] = {name: none}
            changes[f"without {name}"] = replace(asked, **free)
    for name in asked.max_devices:
        rest = {k: v for k, v in asked.max_devices.items() if k != name}
        changes[f"without max_devices.{name}"] = replace(asked, max_devices=rest)
    for name in asked.min_devices:
        rest = {k: v for k, v in asked.min_devices.items() if k != name}
        changes[f"without min_devices.{name}"] = replace(asked, min_devices=rest)
    if asked.prices is not None:
        for kind in asked.offer_kinds:
            rest_kinds = tuple(k for k in asked.offer_kinds if k != kind)
            if rest_kinds:
                changes[f"without {kind} offers"] = _on_offers(replace(asked, offer_kinds=rest_kinds))
        if asked.max_spot_frac < 1.0:
            changes["without max_spot_frac"] = replace(asked, max_spot_frac=1.0)
    return changes


def _looser(request: ServeRequest, name: str) -> ServeRequest:
    """Return the request with one target looser, for every model that has it."""
    models = tuple(replace(m, **_eased(m, name)) for m in request.models)
    return replace(request, **_eased(request, name), models=models)


def _eased(asked: ServeRequest | ModelDemand, name: str) -> dict[str, Any]:
    target_s = getattr(asked, name)
    return {} if target_s is None else {name: target_s * _LOOSER}


def _in_form(request: ServeRequest, form: Any) -> ServeRequest:
    models = tuple(replace(m, form=None) for m in request.models)
    return replace(request, form=form, models=models)


def _on_offers(request: ServeRequest) -> ServeRequest:
    """Return the request without the devices that have no offer of its kinds; as it is where none has."""
    for name in request.gpus:
        try:
            device_offers(replace(request, gpus=(name,)))
        except SpecError:
            rest = _without(request, name)
            request = rest if rest.gpus else request
    return request


def _without(request: ServeRequest, name: str) -> ServeRequest:
    """Return the request without one device and what is said of it."""
    kept: dict[str, Any] = {
        field: {k: v for k, v in getattr(request, field).items() if k != name}
        for field in ("usd_per_hour", "max_devices", "min_devices")
    }
    return replace(request, gpus=tuple(g for g in request.gpus if g != name), **kept)
