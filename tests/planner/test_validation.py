from pathlib import Path
from typing import Any

import pytest

import planner.profiling.validation as module
from costmodels.job import TrainingJob
from costmodels.models import find_model
from costmodels.samples import Sample, lines
from costmodels.strategy import Strategy
from hardware.errors import InputError, OutOfDomainError
from planner.plan import PlanFile, TrainingPlan
from planner.profiling.plan_tasks import plan_tasks, step_task
from planner.profiling.tasks import Task
from planner.profiling.validation import ValidationRequest, job_of, predicted_seconds, validate_plan
from planner.request import TrainRequest
from planner.training.estimate import estimate_training

REQUEST = TrainRequest(
    model="gpt3-13b", cluster="dgx-a100", nodes=1, seq_len=2048, global_batch=16, stack="megatron-core"
)
STRATEGY = Strategy(tp=4, pp=1, dp=2, zero=0, overlap_dp=False)


@pytest.fixture(scope="module")
def plan() -> PlanFile[TrainingPlan]:
    return estimate_training(REQUEST, STRATEGY)


def measuring(monkeypatch: pytest.MonkeyPatch, factor: float, *, broken: str = "") -> None:
    def measure(tasks: list[Task], path: Path, **asked: Any) -> dict[str, int]:
        job, cluster = job_of(estimate_training(REQUEST, STRATEGY), "plan")
        samples = []
        for task in tasks:
            seconds = factor * predicted_seconds(task, job, cluster)
            error = "out of memory" if task.kind == broken else ""
            samples.append(
                Sample(
                    kind=task.kind, shape=task.shape, dtype=task.dtype, num_ranks=8, seconds=seconds,
                    best_s=seconds / 2, device="a100-80gb", error=error,
                )
            )  # fmt: skip
        path.write_text(lines(samples), encoding="utf-8")
        return {}

    monkeypatch.setattr(module, "measure_locally", measure)


KERNELS = ValidationRequest(what=("kernels", "collectives"))


@pytest.mark.parametrize(("factor", "verdict"), [(1.05, "confirmed"), (1.4, "imprecise"), (4.0, "refuted")])
def test_the_verdict_follows_the_error(
    plan: PlanFile[TrainingPlan], monkeypatch: pytest.MonkeyPatch, factor: float, verdict: str
) -> None:
    measuring(monkeypatch, factor)
    document, samples = validate_plan(plan, KERNELS, "plan.json")
    assert document["verdict"].startswith(verdict)
    assert set(document["summary"]) == {"kernels", "collectives"}
    assert document["summary"]["kernels"]["median_ape_frac"] == pytest.approx(1 - 1 / factor, rel=1e-3)
    assert len(samples) == len(document["rows"])


def test_the_best_repeat_can_be_asked_for(
    plan: PlanFile[TrainingPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, 2.0)
    asked = ValidationRequest(what=("kernels",), statistic="best")
    document, _ = validate_plan(plan, asked, "plan.json")
    assert document["verdict"].startswith("confirmed")


def test_a_kernel_that_fails_breaks_the_plan(
    plan: PlanFile[TrainingPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, 1.0, broken="attention_backward")
    document, _ = validate_plan(plan, KERNELS, "plan.json")
    assert document["verdict"].startswith("broken: attention_backward")
    assert "out of memory" in document["verdict"]


def test_what_can_be_checked_is_named(plan: PlanFile[TrainingPlan]) -> None:
    with pytest.raises(InputError, match="--what 'steps' is not known"):
        validate_plan(plan, ValidationRequest(what=("steps",)), "plan.json")


def test_tasks_are_those_of_the_plan() -> None:
    job = TrainingJob(model=find_model("gpt3-13b"), seq_len=2048, global_batch=16)
    tasks = plan_tasks(job, STRATEGY)
    hidden = job.model.hidden
    shapes = {(t.kind, *(v for _, v in t.shape)) for t in tasks}
    assert ("matmul", 2048.0, 4 * hidden / 4, float(hidden)) in shapes
    reductions = {t.shape for t in tasks if t.kind == "all_reduce"}
    assert (("message_bytes", 2048.0 * hidden * 2), ("stride", 1.0), ("degree", 4.0)) in reductions
    assert any(dict(s)["stride"] == 4.0 and dict(s)["degree"] == 2.0 for s in reductions)
    assert len({(t.kind, t.shape) for t in tasks}) == len(tasks)


def test_steps_that_cannot_be_run_say_why() -> None:
    job = TrainingJob(model=find_model("llama-3.1-8b"), seq_len=2048, global_batch=16)
    with pytest.raises(OutOfDomainError, match="gated feed-forward, RMS norms, grouped heads, rotary"):
        step_task(job, STRATEGY)
    mixture = TrainingJob(model=find_model("mixtral-8x7b"), seq_len=2048, global_batch=16)
    with pytest.raises(OutOfDomainError, match="routed experts"):
        plan_tasks(mixture, STRATEGY)
