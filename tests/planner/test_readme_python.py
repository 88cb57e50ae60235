"""The README's Python runs as it stands and gives what the text says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import planner
from planner.plan_io import read_plan

README = Path(planner.__file__).parents[1] / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not part of an installed wheel")


def blocks() -> list[str]:
    return [part.split("\n```", 1)[0] for part in README.read_text(encoding="utf-8").split("```python\n")[1:]]


def test_one_answer_per_number_of_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks()[0], "README.md", "exec"), {})
    steps = [read_plan(f"on-{nodes}-nodes.json").plans[0].predicted.step_s for nodes in (2, 4, 8)]
    assert sorted(steps, reverse=True) == steps


def test_costs_come_as_columns_of_the_table() -> None:
    names: dict[str, Any] = {}
    exec(compile(blocks()[1], "README.md", "exec"), names)
    costs, layouts = names["costs"], names["layouts"]
    assert len(costs) == len(layouts) == 3
    assert np.all(costs.step_low_s < costs.step_s)
