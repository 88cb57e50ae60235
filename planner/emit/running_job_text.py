"""A running job as text, and its cost beside the best plan's."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from costmodels.strategy import Strategy
from hardware.errors import InputError
from planner.emit.readers import RunningJob, read_running_job
from planner.plan import PlanFile, TrainingPlan
from planner.plan_io import plan_document
from planner.request import TrainRequest
from planner.training.compare import Comparison, compare_plans
from planner.training.estimate import estimate_training

__all__ = ["compare_with_running", "estimate_command", "read_running_file", "running_job_text"]


def running_job_text(job: RunningJob) -> str:
    """Return the job as YAML: the strategy's columns, and what of a request its file decides."""
    document: dict[str, Any] = {"kind": job.kind}
    if job.strategy is not None:
        document["strategy"] = plan_document(job.strategy)
    if job.serving:
        document["serving"] = dict(job.serving)
    document["request"] = dict(job.request)
    document["ignored"] = list(job.ignored)
    return f"# {estimate_command(job)}\n" + yaml.safe_dump(document, sort_keys=False)


def estimate_command(job: RunningJob) -> str:
    """Return the command that costs the job; what its file does not say stands in capitals."""
    columns = plan_document(job.strategy) if job.strategy is not None else _serving_options(job)
    request = {"model": "MODEL", **job.request}
    words = ["meshwright", "estimate", "train" if job.strategy is not None else "serve"]
    if job.strategy is not None:
        request = {"cluster": "CLUSTER", "seq_len": "TOKENS", **request}
    for name, value in {**request, **columns}.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            off = {"sequence_parallel": []}.get(name, [f"--no-{flag[2:]}"])
            words += [flag] if value else off
        else:
            words += [flag, str(value)]
    return " ".join(words)


def _serving_options(job: RunningJob) -> dict[str, Any]:
    names = {"weights": "format", "kv": "kv_format"}
    taken = ("tp", "pp", "dp", "ep", "weights", "kv")
    return {names.get(k, k): v for k, v in job.serving.items() if k in taken}


def read_running_file(path: Path, request: TrainRequest) -> RunningJob:
    """Return the training job of a file; JSON is DeepSpeed's, anything else Megatron's arguments.

    Raises
    ------
    InputError, SpecError
        if the file cannot be read, holds no training job, or runs another batch or sequence length than was
        asked for.
    """
    job = read_running_job("deepspeed" if path.suffix == ".json" else "megatron-args", path)
    for name in ("seq_len", "global_batch"):
        there, asked = job.request.get(name), getattr(request, name)
        if there is not None and there != asked:
            message = (
                f"{path}: its {name} is {there}, the request's {asked}; plans for different work cannot be "
                f"compared; pass --{re.sub('_', '-', name)} {there}"
            )
            raise InputError(message)
    if job.strategy is None:
        message = f"{path}: holds no training job"
        raise InputError(message)
    return job


def compare_with_running(
    strategy: Strategy, request: TrainRequest, plan: PlanFile[TrainingPlan]
) -> tuple[PlanFile[TrainingPlan], Comparison]:
    """Return a running strategy costed on the request's cluster, and how the best plan differs from it."""
    if strategy.dp and strategy.world != len(plan.plans[0].placement.ranks):
        strategy = replace(strategy, dp=0)
    current = estimate_training(request, strategy)
    return current, compare_plans(current.plans[0], plan.plans[0])
