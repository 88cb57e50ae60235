import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from costmodels.strategy import Recompute, Strategy
from hardware.errors import InputError, SpecError
from planner import plan_io
from planner.plan import (
    SCHEMA_VERSION,
    Check,
    Excluded,
    FrontPoint,
    Placement,
    PlanFile,
    PlannedRank,
    Provenance,
    Search,
    TrainingPlan,
    TrainingPrediction,
)
from planner.plan_io import plan_text, read_plan, write_plan

GOLDEN = Path(__file__).parent / "golden" / "train_plan_v1.json"


def _plan() -> PlanFile[TrainingPlan]:
    predicted = TrainingPrediction(
        step_s=1.5,
        step_low_s=1.25,
        step_high_s=1.75,
        tokens_per_s_per_device=1000.0,
        mfu_frac=0.5,
        peak_memory_bytes=6e9,
        memory_parts_bytes={"weights": 4e9, "activations": 2e9},
        memory_capacity_bytes=8e10,
        fits_probability=0.999,
        time_parts_s={"forward": 0.5, "backward": 1.0},
        energy_j=700.0,
    )
    strategy = Strategy(tp=2, recompute=Recompute.FULL, recompute_layers=3, sequence_parallel=True)
    ranks = tuple(
        PlannedRank(rank=i, host="node-0", device=i, coordinates={"tp": i, "cp": 0, "dp": 0, "pp": 0})
        for i in (0, 1)
    )
    plan = TrainingPlan(
        strategy=strategy,
        predicted=predicted,
        placement=Placement(ranks=ranks),
        certificate=(Check(name="memory-fits", holds=True, detail="probability 0.9990"),),
    )
    return PlanFile(
        kind="train",
        request={"model": "gpt2", "seq_len": 1024},
        plans=(plan,),
        search=Search(
            num_configs=12, num_feasible=3, wall_s=0.5, excluded=(Excluded(rule="r", count=1, why="because"),)
        ),
        diagnostics=("a note",),
        provenance=Provenance(tool_version="0.1.0", inputs={"model": "ab"}),
        pareto=(FrontPoint(strategy=strategy, step_s=1.5, peak_memory_bytes=6e9, fits_probability=0.999),),
    )


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(_plan(), path)
    assert read_plan(path) == _plan()
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_the_text_is_the_golden_file() -> None:
    assert plan_text(_plan()) == GOLDEN.read_text(encoding="utf-8")


def test_the_golden_file_of_version_1_still_reads() -> None:
    assert read_plan(GOLDEN) == _plan()


def test_files_from_before_local_updates_still_read() -> None:
    assert read_plan(GOLDEN.with_name("train_plan_v1_without_local_updates.json")) == _plan()


def test_an_older_version_is_upgraded_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_two(document: dict[str, Any]) -> dict[str, Any]:
        return {**document, "diagnostics": [*document["diagnostics"], "upgraded"], "schema_version": 2}

    monkeypatch.setattr(plan_io, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(plan_io, "UPGRADES", {1: to_two})
    assert read_plan(GOLDEN).diagnostics == ("a note", "upgraded")


def test_there_is_an_upgrade_from_every_older_version() -> None:
    assert set(plan_io.UPGRADES) == set(range(1, SCHEMA_VERSION))


def test_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(replace(_plan(), schema_version=SCHEMA_VERSION + 1), path)
    with pytest.raises(InputError, match=f"schema_version {SCHEMA_VERSION + 1} is newer"):
        read_plan(path)


def test_every_wrong_key_is_named(tmp_path: Path) -> None:
    document = json.loads(plan_text(_plan()))
    document["plans"][0]["strategy"]["recompute"] = "some"
    document["plans"][0]["predicted"]["step_s"] = "long"
    document["search"]["num_confs"] = 1
    document["plan"] = []
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(SpecError) as error:
        read_plan(path)
    text = str(error.value)
    for words in (
        "recompute: 'some' is none of none, selective, full",
        "plans.0.predicted.step_s",
        "num_confs",
        "plan: unexpected key (known: schema_version",
    ):
        assert words in text


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_plan(_plan(), tmp_path / "none" / "plan.json")


def test_not_a_number_never_reaches_a_file() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        plan_text(replace(_plan().search, wall_s=float("nan")))
