"""Plans from measured layers, from the command line and against every candidate."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from costmodels.job import TrainingJob
from costmodels.models import find_model
from costmodels.training.hetero import hetero_cost
from hardware.catalog import find_cluster
from hardware.errors import InputError, SpecError
from planner.request import TrainRequest
from planner.training.flow import plan_training
from planner.training.hetero_search import _candidates, _solved, best_hetero_plan
from planner.training.profiled_fleet import read_profiled_fleet
from tests.planner.conftest import Meshwright

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LAYERS = EXAMPLES / "measured" / "layers.yaml"
CLUSTER = str(EXAMPLES / "clusters" / "old-and-new.yaml")
ARGUMENTS = ["--model", "gpt3-1.3b", "--cluster", CLUSTER, "--seq-len", "2048", "--global-batch", "256"]


def test_layers_from_the_command_line(meshwright: Meshwright, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    shown = meshwright(
        "plan", "train", *ARGUMENTS, "--precision", "fp16", "--layer-profiles", str(LAYERS), "-o", str(out)
    )
    assert shown.exit_code == 0, shown.output
    assert "stages of #1:" in shown.output
    document = json.loads(out.read_text())
    best = document["plans"][0]
    assert all(check["holds"] for check in best["certificate"])
    assert sum(stage["num_layers"] for stage in best["stages"]) == 26
    assert {stage["group"] for stage in best["stages"]} == {"new", "old"}
    assert any("can be faster than" in note for note in document["diagnostics"])


def test_the_plan_is_the_best_of_all_candidates() -> None:
    """Brute force: every candidate of a small fleet, solved and costed."""
    job = TrainingJob(model=find_model("gpt3-1.3b"), seq_len=2048, global_batch=8, precision="fp16")
    known = read_profiled_fleet(str(LAYERS), job, find_cluster(CLUSTER))
    fleet = replace(known.fleet, num_devices={"new": 2, "old": 4})
    found = best_hetero_plan(fleet, known.model, rel_gap=0.0, time_limit_s=120.0)
    plans = [_solved(c, fleet, known.model) for c in _candidates(fleet, known.model)]
    steps = [hetero_cost(plan, known.model).step_s for plan in plans if plan is not None]
    assert found.objective == pytest.approx(min(steps))
    assert found.bound is not None
    assert found.bound <= min(steps) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("profiles: {new: layers-new.json}\n", "groups of old-and-new are new, old"),
        ("profiles: {new: layers-new.json, old: nothing.json}\n", "cannot be read"),
        ("profil: {}\n", "unexpected key"),
        (
            "profiles: {new: layers-new.json, old: layers-old.json}\n"
            "links: [{groups: [new, moon], peak_bytes_per_s: 1 GB/s}]\n",
            "no group is called moon",
        ),
        (
            "profiles: {new: layers-new.json, old: layers-old.json}\n"
            "links: [{groups: [new, old], tp: 3, peak_bytes_per_s: 1 GB/s}]\n",
            "no layer was measured at 3, only at 1, 2, 4",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    for name in ("layers-new.json", "layers-old.json"):
        (tmp_path / name).write_text((LAYERS.parent / name).read_text())
    path = tmp_path / "layers.yaml"
    path.write_text(text)
    job = TrainingJob(model=find_model("gpt3-1.3b"), seq_len=2048, global_batch=32)
    with pytest.raises(SpecError, match=message):
        read_profiled_fleet(str(path), job, find_cluster(CLUSTER))


def test_layers_of_another_model_are_refused() -> None:
    job = TrainingJob(model=find_model("gpt3-13b"), seq_len=2048, global_batch=32)
    with pytest.raises(SpecError, match="but the model has 42"):
        read_profiled_fleet(str(LAYERS), job, find_cluster(CLUSTER))


def test_other_options_do_not_mix() -> None:
    request = TrainRequest(
        model="gpt3-1.3b",
        cluster=CLUSTER,
        seq_len=2048,
        global_batch=32,
        layer_profiles=str(LAYERS),
        allow={"tp": (1,)},
    )
    with pytest.raises(InputError, match="allow: not together with layer_profiles"):
        plan_training(request)
