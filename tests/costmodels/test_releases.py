"""Software that gets faster from release to release."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from costmodels.run_table import RunRow
from costmodels.stacks import stack_names, stack_release
from costmodels.strategy import ConfigTable, Strategy
from costmodels.training.evaluate import evaluate
from costmodels.training.releases import FASTER_PER_MONTH, NEWEST, release_months, release_pace
from costmodels.training.stack_choice import release_of_run
from tests.costmodels.cases import cluster, gpt_job


def test_the_newest_release_and_none_keep_their_time() -> None:
    assert release_pace(NEWEST) == 1.0
    assert release_pace("") == 1.0


def test_a_year_takes_off_what_a_month_does_twelve_times() -> None:
    assert release_pace("25.06") == pytest.approx(np.exp(12 * FASTER_PER_MONTH))


def test_a_patch_counts_as_a_week() -> None:
    assert release_months("26.04.02") - release_months("26.04") == pytest.approx(0.5)


def test_a_release_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="nightly"):
        release_months("nightly")


@pytest.mark.parametrize("name", stack_names())
def test_stacks_of_one_family_say_their_release(name: str) -> None:
    assert bool(stack_release(name)) == name.startswith("megatron-core")


def test_a_newer_release_is_predicted_faster_in_every_part() -> None:
    table = ConfigTable.from_strategies([Strategy(tp=8, dp=2)])
    old, new = (
        evaluate(replace(gpt_job(), stack="megatron-core", release=r), cluster(), table, corrected=False)
        for r in ("26.06", "26.08")
    )
    expected = np.exp(-2 * FASTER_PER_MONTH)
    assert new.step_s[0] == pytest.approx(expected * old.step_s[0])
    assert new.forward_s[0] == pytest.approx(expected * old.forward_s[0])


@pytest.mark.parametrize(
    ("source", "reference", "release"),
    [
        ("Megatron-Bridge", "performance-summary.md [26.04.01 NeMo Container]", "26.04.01"),
        ("dgxc-benchmarking", "v25.04.02 llama3.1/README.md", "25.04.02"),
        ("dgxc-benchmarking", "README.md", ""),
        ("vTrain-multi", "v25.04.02", ""),
    ],
)
def test_release_of_a_run(source: str, reference: str, release: str) -> None:
    values = {"source": source, "source_ref": reference, "gpu": "H100-80GB"}
    assert release_of_run(RunRow(values=values, where="t", line=2, filled=Counter())) == release
