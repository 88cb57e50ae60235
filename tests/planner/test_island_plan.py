"""Islands at measured speeds, and islands that only average their models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hardware.errors import InputError
from planner.request import TrainRequest, named_speeds
from planner.training.flow import plan_training
from tests.planner.conftest import Meshwright

REQUEST = TrainRequest(
    model="gpt3-1.3b", cluster="holmes-hybrid", seq_len=2048, global_batch=32, stack="megascale"
)


def _asked(**changes: Any) -> TrainRequest:
    return replace(REQUEST, **changes)


def test_a_slower_island_gets_fewer_layers() -> None:
    plan = plan_training(_asked(attained={"infiniband": 2.0, "roce": 1.0})).plans[0]
    layers = {
        group: sum(stage.num_layers for stage in plan.stages if stage.group == group)
        for group in ("infiniband", "roce")
    }
    assert layers["infiniband"] > 1.5 * layers["roce"]
    even = plan_training(_asked(attained={"infiniband": 1.0, "roce": 1.0})).plans[0]
    assert even.predicted.step_s < plan.predicted.step_s


@pytest.mark.parametrize(
    "attained", [{"infiniband": 1.0}, {"infiniband": 1.0, "roce": 1.0, "moon": 1.0}, {"left": 1.0}]
)
def test_speeds_name_every_group(attained: dict[str, float]) -> None:
    with pytest.raises(InputError, match="has the groups infiniband, roce"):
        plan_training(_asked(attained=attained))


def test_words_of_speeds() -> None:
    assert named_speeds(["a=1", "b=2.5"]) == {"a": "1", "b": "2.5"}
    assert named_speeds([]) is None
    for words in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(InputError, match="GROUP=SPEED"):
            named_speeds(words)


def test_local_updates_are_planned_only_when_asked() -> None:
    assert all(plan.local_updates is None for plan in plan_training(REQUEST).plans)
    file = plan_training(_asked(local_steps=16))
    updates = file.plans[0].local_updates
    assert updates is not None
    assert updates.staleness_steps == 32
    assert sum(island.global_batch for island in updates.islands) == 32
    assert all(check.holds for check in file.plans[0].certificate)
    assert any("32 steps late" in note for note in file.diagnostics)
    waiting = plan_training(_asked(local_steps=16, local_overlap=False)).plans[0]
    assert waiting.local_updates is not None
    assert waiting.local_updates.staleness_steps == 16
    assert waiting.predicted.step_s > file.plans[0].predicted.step_s


def test_local_updates_need_groups() -> None:
    with pytest.raises(InputError, match="has one group"):
        plan_training(_asked(cluster="dgx-a100", nodes=2, local_steps=4))


def test_the_command_line_shows_staleness_and_refuses_to_emit(meshwright: Meshwright, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    arguments = ["--model", "gpt3-13b", "--cluster", "holmes-hybrid", "--seq-len", "2048"]
    arguments += ["--global-batch", "64", "--local-steps", "8", "-o", str(out)]
    shown = meshwright("plan", "train", *arguments)
    assert shown.exit_code == 0, shown.output
    assert "16 steps late" in shown.output
    assert "certificate of #1: 7 of 7 checks hold" in shown.output
    assert json.loads(out.read_text())["plans"][0]["local_updates"]["local_steps"] == 8
    emitted = meshwright("emit", str(out), "--target", "megatron-lm", "-o", str(tmp_path / "files"))
    assert emitted.exit_code == 2
    assert "local_updates" in emitted.output


def test_shares_of_the_batch_leave_islands_ways_to_divide_them() -> None:
    """By speed 64 sequences are 46 and 18, and 46 = 2 x 23 divides badly over 64 devices."""
    request = TrainRequest(
        model="llama-3.2-1b", cluster="two-sites-wan", seq_len=4096, global_batch=64, local_steps=15
    )
    plan = plan_training(request).plans[0]
    assert plan.local_updates is not None
    assert [island.global_batch for island in plan.local_updates.islands] == [48, 16]
    assert plan.predicted.step_s < 0.085
