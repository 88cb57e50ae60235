"""A plan against the machine: its kernels, collectives and step are run and compared with the prediction."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.calibration.links import LINK_KINDS
from costmodels.collectives.times import Collective, collective_s, p2p_s
from costmodels.job import TrainingJob
from costmodels.kernels.times import kernel_model
from costmodels.samples import Sample, read_samples
from costmodels.strategy import ConfigTable, Strategy
from costmodels.training.evaluate import evaluate
from hardware.cluster import Cluster
from hardware.errors import InputError, OutOfDomainError, SpecError
from hardware.schema import validate
from planner.plan import PlanFile, TrainingPlan
from planner.profiling.launch import measure_locally
from planner.profiling.plan_tasks import plan_tasks, step_task
from planner.profiling.tasks import Task
from planner.request import TrainRequest, resolve

__all__ = ["ValidationRequest", "job_of", "predicted_seconds", "validate_plan"]

_GOOD = 0.15
"""Median error up to which a plan is called confirmed."""
_WRONG = 0.5
"""Error of the step beyond which the plan is called refuted."""
WHAT = ("kernels", "collectives", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRequest:
    """How to check a plan."""

    backend: str = "cpu"
    ranks: int | None = None
    """Processes; None is as many as the plan has devices."""
    what: tuple[str, ...] = WHAT
    samples: Path | None = None
    """Where the measurements are kept; nowhere for None."""
    statistic: str = "median"


def job_of(file: PlanFile[Any], where: str) -> tuple[TrainingJob, Cluster]:
    """Return the job and cluster that a training plan was made for.

    Raises
    ------
    SpecError
        if the file holds no training plan.
    """
    if file.kind != "train" or not file.plans:
        raise SpecError(where, [f"kind: {file.kind!r} cannot be run here; accepted: train"])
    known = {f.name for f in fields(TrainRequest)}
    asked = {k: v for k, v in file.request.items() if k in known and v is not None}
    return resolve(validate(TrainRequest, asked, f"{where}: request"))


def predicted_seconds(task: Task, job: TrainingJob, cluster: Cluster) -> float:
    """Return what the cost model, as it is now, says that a task takes."""
    model, at = kernel_model(cluster.device, as_benchmarked=True), dict(task.shape)
    if task.kind == "matmul":
        return float(model.matmul_s(at["m"], at["n"], at["k"], dtype=task.dtype))
    if task.kind.startswith("attention"):
        kernel = model.attention_s if task.kind.endswith("forward") else model.attention_backward_s
        return float(
            kernel(
                batch=at["batch"], q_len=at["q_len"], kv_len=at["q_len"], heads=at["heads"],
                kv_heads=at["kv_heads"], head_dim=at["head_dim"],
            )
        )  # fmt: skip
    if task.kind in LINK_KINDS:
        size = np.array([at["message_bytes"]])
        stride, degree = np.array([int(at["stride"])]), np.array([int(at["degree"])])
        if task.kind == "p2p":
            return float(p2p_s(size, stride, cluster.levels)[0])
        return float(collective_s(Collective(task.kind), size, stride, degree, cluster.levels)[0])
    if task.kind == "step":
        row = Strategy(
            tp=int(at["tp"]), pp=int(at["pp"]), dp=int(at["dp"]), micro_batch=int(at["micro_batch"]), zero=0,
        )  # fmt: skip
        return float(evaluate(job, cluster, ConfigTable.from_strategies([row])).step_s[0])
    message = f"nothing predicts a {task.kind}"
    raise OutOfDomainError(message)


def _tasks(job: TrainingJob, strategy: Strategy, request: ValidationRequest, ranks: int) -> list[Task]:
    unknown = sorted(set(request.what) - set(WHAT))
    if unknown:
        message = f"--what {unknown[0]!r} is not known; accepted: {', '.join(WHAT)}"
        raise InputError(message)
    tasks = [
        t
        for t in plan_tasks(job, strategy)
        if ("collectives" if t.kind in LINK_KINDS else "kernels") in request.what
        and dict(t.shape).get("degree", 1.0) * dict(t.shape).get("stride", 1.0) <= ranks
    ]
    if "step" in request.what and ranks == strategy.world:
        tasks.append(step_task(job, strategy))
    return tasks


def validate_plan(
    file: PlanFile[TrainingPlan], request: ValidationRequest, where: str
) -> tuple[dict[str, Any], tuple[Sample, ...]]:
    """Return the comparison of the file's first plan with this machine, and the samples behind it.

    Raises
    ------
    OutOfDomainError
        if the plan cannot be run here, or a rank died.
    """
    job, cluster = job_of(file, where)
    strategy = file.plans[0].strategy
    ranks = request.ranks or strategy.world
    tasks = _tasks(job, strategy, request, ranks)
    if not tasks:
        message = f"nothing of the plan can be run on {ranks} ranks; it is laid over {strategy.world}"
        raise OutOfDomainError(message)
    with tempfile.TemporaryDirectory(prefix="meshwright-") as folder:
        path = request.samples or Path(folder) / "samples.csv"
        measure_locally(tasks, path, backend=request.backend, num_ranks=ranks, device=cluster.device.name)
        found = read_samples(path)
    rows = _rows(tasks, found.samples + found.failed, job, cluster, request.statistic)
    summary = _summary(rows)
    notes = (
        [] if ranks == strategy.world else [f"step not run: {ranks} ranks, the plan needs {strategy.world}"]
    )
    disturbed = sum(s.disturbance > 1.0 for s in found.samples)
    if disturbed:
        notes.append(f"others used the machine during {disturbed} of {len(found.samples)} measurements")
    document = {
        "kind": "validation",
        "strategy": {n: int(getattr(strategy, n)) for n in ("tp", "pp", "dp", "micro_batch")},
        "rows": rows,
        "summary": summary,
        "verdict": _verdict(rows, summary),
        "notes": notes,
    }
    return document, found.samples


def _rows(
    tasks: Sequence[Task], samples: Sequence[Sample], job: TrainingJob, cluster: Cluster, statistic: str
) -> list[dict[str, Any]]:
    known = {(s.kind, s.shape, s.dtype): s for s in samples}
    rows = []
    for task in tasks:
        sample = known.get((task.kind, task.shape, task.dtype))
        failed = sample is None or bool(sample.error)
        measured = None if sample is None or failed else sample.seconds
        if sample is not None and not failed and statistic == "best":
            measured = sample.best_s
        rows.append(
            {
                "kind": task.kind,
                "shape": " ".join(f"{k}={v:g}" for k, v in task.shape),
                "predicted_s": predicted_seconds(task, job, cluster),
                "measured_s": measured,
                "spread_frac": None if sample is None else sample.spread_frac,
                "error": "" if sample is None else sample.error,
            }
        )
    return rows


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    parts = {
        "kernels": [r for r in rows if r["kind"] not in LINK_KINDS and r["kind"] != "step"],
        "collectives": [r for r in rows if r["kind"] in LINK_KINDS],
        "step": [r for r in rows if r["kind"] == "step"],
    }
    found = {}
    for name, part in parts.items():
        ratios = [abs(r["predicted_s"] / r["measured_s"] - 1.0) for r in part if r["measured_s"] is not None]
        if ratios:
            found[name] = {"num_rows": len(ratios), "median_ape_frac": float(np.median(ratios))}
    return found


def _verdict(rows: Sequence[dict[str, Any]], summary: dict[str, dict[str, Any]]) -> str:
    failed = [r for r in rows if r["error"]]
    if failed:
        return f"broken: {failed[0]['kind']} {failed[0]['shape']} could not be run ({failed[0]['error']})"
    name = "step" if "step" in summary else max(summary, key=lambda n: float(summary[n]["median_ape_frac"]))
    error = float(summary[name]["median_ape_frac"])
    if error <= _GOOD:
        return f"confirmed: the {name} is predicted within {100 * error:.0f} %"
    size = "refuted" if error > _WRONG else "imprecise"
    return f"{size}: the {name} is off by {100 * error:.0f} %; calibrate with the samples, then plan again"
