"""Every emitted byte, held against files that a person has read. Update with MESHWRIGHT_UPDATE_GOLDEN=1."""

import os
from importlib.metadata import version

import pytest

from planner.emit.emission import Emission
from planner.emit.emit_plan import emit_plan
from planner.emit.targets import TARGETS
from tests.planner.emit.cases import BY_TARGET, CASES, GOLDEN, plan_path

SHIPPED = {"plan.json", "decoder.py", "router.py"}
"""Copies of what is read elsewhere, and programs that the tests run."""


def _text(emission: Emission) -> str:
    parts = []
    for name in sorted(emission.files):
        if name in SHIPPED or name.startswith("train_"):
            continue
        mark = " (command)" if name in emission.commands else ""
        parts.append(f"=== {name}{mark}\n{emission.files[name]}")
    tool = version("meshwright")
    text = "".join(parts).replace(f"meshwright {tool} ", "meshwright VERSION ")
    return text.replace(f'"tool_version": "{tool}"', '"tool_version": "VERSION"')


@pytest.mark.parametrize(("plan", "target", "scheduler"), CASES)
def test_golden(plan: str, target: str, scheduler: str | None) -> None:
    text = _text(emit_plan(plan_path(plan), target, scheduler=scheduler))
    path = GOLDEN / target / f"{plan}{f'-{scheduler}' if scheduler else ''}.txt"
    if os.environ.get("MESHWRIGHT_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_at_least_three_plans_per_target() -> None:
    assert set(BY_TARGET) == set(TARGETS)
    assert all(len(plans) >= 3 for plans in BY_TARGET.values())


def test_same_plan_same_bytes() -> None:
    first, second = (emit_plan(plan_path("gpt3"), "megatron-lm") for _ in range(2))
    assert first == second
