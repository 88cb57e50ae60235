"""Why a training plan is as it is: where time and memory go, why others lost, what each decision is worth."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from costmodels.job import TrainingJob
from costmodels.stacks import device_stack
from costmodels.strategy import ConfigTable, Recompute, Strategy
from costmodels.training.evaluate import evaluate
from hardware.cluster import Cluster
from hardware.errors import InputError
from planner.plan import PlanFile, TrainingPlan
from planner.request import TrainRequest, allowed_values, group_speeds, resolve
from planner.training.compare import Comparison, compare_plans, value_words
from planner.training.memory_fit import memory_of
from planner.training.mixed_plan import search_mixed_pipelines
from planner.training.mixed_shapes import MICRO_BATCHES, RECOMPUTES
from planner.training.search import Tally, batches, feasible
from planner.training.space import training_space

__all__ = ["Explanation", "Margin", "decision_margins", "explain_training", "request_of"]

Floats = npt.NDArray[np.float64]

_DECISIONS = (
    "tp",
    "cp",
    "pp",
    "dp",
    "ep",
    "etp",
    "vpp",
    "micro_batch",
    "sequence_parallel",
    "recompute",
    "zero",
)
_ORDER = (*_DECISIONS, "dp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """The best that another value of one decision could do, all other decisions free."""

    decision: str
    chosen: str
    other: str
    step_s: float | None
    """Best step with the other value; null where nothing with it fits."""
    slower_frac: float | None
    """Against the best step of the whole space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why the first plan of a file is the best one."""

    plan: TrainingPlan
    time_shares_frac: Mapping[str, float]
    memory_shares_frac: Mapping[str, float]
    runner_up: Comparison | None
    margins: tuple[Margin, ...]
    assumptions: tuple[str, ...]


def request_of(file: PlanFile[TrainingPlan]) -> TrainRequest:
    """Return the request that a plan file answers.

    Raises
    ------
    InputError
        if the file is no training plan.
    """
    from hardware.schema import validate

    if file.kind != "train":
        message = f"kind: {file.kind!r}; only training plans (kind 'train') can be explained"
        raise InputError(message)
    return validate(TrainRequest, dict(file.request), "request of the plan")


def explain_training(file: PlanFile[TrainingPlan]) -> Explanation:
    """Return why the best plan of `file` won; the space is searched again for the margins."""
    best = file.plans[0]
    return Explanation(
        plan=best,
        time_shares_frac=_shares(best.predicted.time_parts_s),
        memory_shares_frac=_shares(best.predicted.memory_parts_bytes),
        runner_up=compare_plans(best, file.plans[1]) if len(file.plans) > 1 else None,
        margins=decision_margins(request_of(file), best),
        assumptions=tuple(file.diagnostics),
    )


def _shares(parts: Mapping[str, float]) -> dict[str, float]:
    total = sum(parts.values())
    return {name: value / total for name, value in sorted(parts.items(), key=lambda p: (-p[1], p[0]))}


def decision_margins(request: TrainRequest, best: TrainingPlan) -> tuple[Margin, ...]:
    """Return, for every other value of every decision, the best step of all strategies that have it."""
    least = _least_steps(request, best)
    columns = {f.name: getattr(best.strategy, f.name) for f in fields(Strategy)}
    fastest = best.predicted.step_s
    return tuple(
        Margin(
            decision=name,
            chosen=value_words(name, columns[name]),
            other=value_words(name, _typed(name, value, columns[name])),
            step_s=step_s if np.isfinite(step_s) else None,
            slower_frac=step_s / fastest - 1 if np.isfinite(step_s) else None,
        )
        for (name, value), step_s in sorted(least.items(), key=lambda m: (_ORDER.index(m[0][0]), m[0][1]))
        if value != int(columns[name])
    )


def _least_steps(request: TrainRequest, best: TrainingPlan) -> dict[tuple[str, int], float]:
    """Return the best step that fits by (decision, value); infinite where nothing with the value fits.

    Empty for groups that average their models, and for layers that were measured: those plans say themselves
    what else was searched.
    """
    if request.local_steps is not None or request.layer_profiles is not None:
        return {}
    job, cluster = resolve(request)
    if best.stages:
        return _least_mixed_steps(request, job, cluster)
    space = training_space(
        job,
        world=cluster.num_devices,
        levels=cluster.levels,
        flash_attention=device_stack(job.stack, cluster.device).flash,
        allow=allowed_values(request),
    )
    least = {
        (name, value): np.inf
        for name in _DECISIONS
        if name in space.prefix
        for value in np.unique(space.prefix[name]).tolist()
    }
    memory = memory_of(job, cluster)
    for configs in batches(feasible(space, memory, request.min_fits_probability, Tally())):
        step_s = evaluate(job, cluster, configs).step_s
        for name in _DECISIONS:
            _lower(least, name, configs, step_s)
    return least


def _least_mixed_steps(
    request: TrainRequest, job: TrainingJob, cluster: Cluster
) -> dict[tuple[str, int], float]:
    """Return the same for pipelines over unlike groups, by what all their stages share."""
    degrees = range(1, min(group.num_devices for group in cluster.groups) + 1)
    tried = {"dp": tuple(degrees), "micro_batch": MICRO_BATCHES, "recompute": RECOMPUTES}
    allow, attained = allowed_values(request), group_speeds(request, cluster)
    least = {}
    for name, value in ((n, v) for n, values in tried.items() for v in allow.get(n, values)):
        narrowed = {**allow, name: (value,)}
        found = search_mixed_pipelines(job, cluster, top=1, attained=attained, allow=narrowed)
        if found.num_layouts:
            least[name, value] = found.pipelines[0].step_s if found.pipelines else np.inf
    return least


def _typed(name: str, value: int, like: object) -> object:
    if name == "recompute":
        return Recompute(value)
    return bool(value) if isinstance(like, bool) else value


def _lower(least: dict[tuple[str, int], float], name: str, configs: ConfigTable, step_s: Floats) -> None:
    values, inverse = np.unique(getattr(configs, name), return_inverse=True)
    lowest = np.full(len(values), np.inf)
    np.minimum.at(lowest, inverse, step_s)
    for value, time_s in zip(values.tolist(), lowest.tolist(), strict=True):
        least[name, value] = min(least.get((name, value), np.inf), time_s)
