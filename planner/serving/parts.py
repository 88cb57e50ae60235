"""One plan file per model of a fleet of several, for the simulator and the launch files."""

from dataclasses import replace
from pathlib import Path

from hardware.schema import validate
from planner.plan import PlanFile
from planner.plan_io import plan_document, write_plan
from planner.serving.model_requests import model_requests
from planner.serving.plan import ModelPrediction, ServingPlan
from planner.serving.request import ServeRequest

__all__ = ["model_files", "write_serving_plan"]


def model_files(file: PlanFile[ServingPlan]) -> dict[str, PlanFile[ServingPlan]]:
    """Return the part of each model as a plan file of its own; empty where there is only one model."""
    asked = validate(ServeRequest, dict(file.request), "request of the plan")
    if not asked.models:
        return {}
    return {
        str(one.model): replace(
            file, request=plan_document(one), plans=tuple(_part(plan, str(one.model)) for plan in file.plans)
        )
        for one in model_requests(asked)
    }


def write_serving_plan(file: PlanFile[ServingPlan], path: Path) -> tuple[Path, ...]:
    """Write a plan file, and beside it one of each model where there are several; return what was written."""
    written = [path]
    write_plan(file, path)
    for name, part in model_files(file).items():
        beside = path.with_name(f"{path.stem}.{Path(name).stem if '/' in name else name}{path.suffix}")
        write_plan(part, beside)
        written.append(beside)
    return tuple(written)


def _part(plan: ServingPlan, model: str) -> ServingPlan:
    own: ModelPrediction = next(p for p in plan.predicted.by_model if p.model == model)
    mix = tuple(replace(m, model=None) for m in plan.mix if m.model == model)
    whole = plan.predicted
    return replace(
        plan,
        strategy=replace(plan.strategy, form=own.form, instances={m.name: m.count for m in mix}),
        mix=mix,
        routing=tuple(replace(r, model=None) for r in plan.routing if r.model == model),
        predicted=replace(
            whole,
            **{name: getattr(own, name) for name in _OWN},
            num_devices=sum(m.count * m.devices_per_instance for m in mix),
            cost_usd_per_million_tokens=whole.cost_usd_per_million_tokens,
            best_single_usd_per_hour=None,
            bound_usd_per_hour=None,
            bound_watts=None,
            bound_requests_per_s=None,
            watts=None,
            joules_per_token=None,
            by_model=(),
        ),
        purchases=(),
        levels=(),
        reason=f"its part of a fleet of several models: {plan.reason}",
    )


_OWN = (
    "ttft_s",
    "tpot_s",
    "throughput_tokens_per_s",
    "requests_per_s",
    "cost_usd_per_hour",
    "headroom_frac",
    "simulated",
)
