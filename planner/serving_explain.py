"""Why a serving plan is as it is: what each device, format and target is worth in dollars per hour."""

from dataclasses import dataclass, replace

from hardware.errors import InfeasibleError, InputError
from hardware.schema import validate
from planner.plan import Check, PlanFile
from planner.serving_plan import plan_serving
from planner.serving_request import ServeRequest
from planner.serving_types import ServingPlan

__all__ = ["ServingExplanation", "ServingMargin", "explain_serving"]

_LOOSER = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingMargin:
    """What one change of the question would cost."""

    change: str
    usd_per_hour: float | None
    """Of the cheapest fleet then; null where none serves the workload."""
    difference_usd_per_hour: float | None


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
    base = plan_serving(asked).plans[0].predicted.cost_usd_per_hour
    changes = {f"without {name}": _without(asked, name) for name in asked.gpus if len(asked.gpus) > 1}
    for name in ("slo_ttft_s", "slo_tpot_s", "slo_e2e_s"):
        target_s = getattr(asked, name)
        if target_s is not None:
            changes[f"{name} {_LOOSER:g} times looser"] = replace(asked, **{name: target_s * _LOOSER})
    changes |= {f"{form} form only": replace(asked, form=form) for form in ("joint", "split")}
    margins = []
    for change, request in changes.items():
        try:
            cost = plan_serving(request).plans[0].predicted.cost_usd_per_hour
        except InfeasibleError:
            margins.append(ServingMargin(change=change, usd_per_hour=None, difference_usd_per_hour=None))
            continue
        margins.append(ServingMargin(change=change, usd_per_hour=cost, difference_usd_per_hour=cost - base))
    best = file.plans[0]
    return ServingExplanation(
        reason=best.reason,
        margins=tuple(margins),
        certificate=best.certificate,
        assumptions=(*file.diagnostics, "margins are planned without simulation, so without its headroom"),
    )


def _without(request: ServeRequest, name: str) -> ServeRequest:
    """Return the request without one device and what is said of it."""
    kept = {
        field: {k: v for k, v in getattr(request, field).items() if k != name}
        for field in ("usd_per_hour", "max_devices", "min_devices")
    }
    return replace(request, gpus=tuple(g for g in request.gpus if g != name), **kept)  # type: ignore[arg-type]
