from pathlib import Path

import pytest

import planner
from planner.request import read_train_request
from planner.training.flow import plan_training

REQUESTS = sorted((Path(planner.__file__).parents[1] / "examples" / "requests").glob("*.yaml"))


@pytest.mark.skipif(not REQUESTS, reason="examples are not part of an installed wheel")
def test_there_are_examples() -> None:
    assert len(REQUESTS) >= 2


@pytest.mark.parametrize("path", REQUESTS, ids=lambda path: path.stem)
def test_the_example_has_a_certified_plan(path: Path) -> None:
    request = read_train_request(str(path), {})
    file = plan_training(request)
    for plan in file.plans:
        assert [c.name for c in plan.certificate if not c.holds] == []
        for name, values in request.allow.items():
            assert int(getattr(plan.strategy, name)) in [int(v) for v in values]
