"""The interval of a step: narrow where its source was fitted, wider by known amounts where it was not."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.intervals import Z90, covering_spread
from costmodels.stacks import find_stack, fitted_ranges, stack_names
from costmodels.strategy import ConfigTable, Strategy
from costmodels.training.evaluate import evaluate
from costmodels.training.spread import between, is_new_device, is_new_source
from costmodels.training.stack_choice import knows_source
from hardware.catalog import find_device
from tests.costmodels.cases import cluster, gpt_job

TABLE = ConfigTable.from_strategies(
    [Strategy(tp=8, dp=2, micro_batch=1), Strategy(tp=1, dp=16, micro_batch=4)]
)


def test_a_source_that_was_fitted_keeps_the_spread_within() -> None:
    stack = find_stack("nemo-mlperf")
    assert stack.sources
    job = gpt_job(stack=stack.name, precision="fp8")
    costs = evaluate(job, cluster(device="h100"), TABLE, source=stack.sources[0])
    assert costs.sigma == pytest.approx(np.full(2, stack.sigma))


def test_another_cluster_adds_the_spread_between_sources_and_more_where_the_host_is_slow() -> None:
    stack = find_stack("nemo-mlperf")
    job = gpt_job(stack=stack.name, precision="fp8")
    costs = evaluate(job, cluster(device="h100"), TABLE)
    waits = costs.host_s / costs.step_s
    added = between()
    expected = np.sqrt(stack.sigma**2 + added.source**2 + (added.host_frac * waits) ** 2)
    assert costs.sigma == pytest.approx(expected)
    assert waits[0] > waits[1]
    assert costs.sigma[0] > costs.sigma[1]


def test_an_unmeasured_stack_is_less_sure_than_a_measured_one() -> None:
    assert find_stack("megatron-unfused").sources == ()
    assert between().stack > between().source > 0
    seen = evaluate(gpt_job(stack="megatron-2022"), cluster(), TABLE)
    unseen = evaluate(gpt_job(stack="megatron-unfused"), cluster(), TABLE)
    assert (unseen.sigma > seen.sigma).all()


def test_a_guessed_stack_is_as_unsure_as_an_unmeasured_one() -> None:
    stack = find_stack("megatron-2022")
    guessed = evaluate(gpt_job(stack=stack.name), cluster(), TABLE, source="elsewhere", stack_known=False)
    stated = evaluate(gpt_job(stack=stack.name), cluster(), TABLE, source="elsewhere")
    gap = guessed.sigma**2 - stated.sigma**2
    assert gap == pytest.approx(between().stack ** 2 - between().source ** 2)
    assert knows_source("vTrain-multi")
    assert not knows_source("elsewhere")


@pytest.mark.parametrize(
    ("device", "number_format", "new"),
    [
        ("h100", "bf16", False),
        ("h100-pcie", "bf16", False),
        ("h100", "nvfp4", True),
        ("mi300x", "bf16", True),
        ("v100-32gb", "bf16", True),
    ],
)
def test_devices_share_the_runs_of_their_dies(device: str, number_format: str, new: bool) -> None:
    assert is_new_device(find_stack("megatron-core"), find_device(device), number_format) is new


def test_a_device_without_runs_or_kernels_widens_the_interval() -> None:
    known = evaluate(gpt_job(), cluster(device="h100"), TABLE)
    unknown = evaluate(gpt_job(), cluster(device="mi300x"), TABLE)
    floor = np.hypot(find_stack("megatron-core").sigma, np.hypot(between().source, between().device))
    assert (unknown.sigma > floor).all()
    assert (unknown.sigma > known.sigma).all()


def test_a_stack_of_the_machine_at_hand_adds_nothing() -> None:
    own = replace(find_stack("nemo-mlperf"), sources=None)
    assert not is_new_source(own, "")
    costs = evaluate(gpt_job(), cluster(device="mi300x"), TABLE, stack=own)
    assert costs.sigma == pytest.approx(np.full(2, own.sigma))


@pytest.mark.parametrize("name", stack_names())
def test_every_stack_names_the_sources_it_was_fitted_to(name: str) -> None:
    assert find_stack(name).sources is not None


def test_covering_spread_finds_what_was_added() -> None:
    rng = np.random.default_rng(0)
    within, true = 0.05, 0.2
    lever = rng.uniform(0.5, 1.5, size=20_000)
    error = rng.normal(0.0, np.hypot(within, true * lever))
    ones = np.ones(len(error))
    found = covering_spread(error, within**2 * ones, share=0.9, weight=ones, lever=lever)
    assert found == pytest.approx(true, rel=0.03)
    assert np.mean(np.abs(error) <= Z90 * np.hypot(within, found * lever)) == pytest.approx(0.9, abs=1e-3)


def test_covering_spread_is_zero_where_nothing_is_missing() -> None:
    ones = np.ones(3)
    assert covering_spread(0.01 * ones, ones, share=0.9, weight=ones) == 0.0
    assert covering_spread(ones[:0], ones[:0], share=0.9, weight=ones[:0]) == 0.0


def test_covering_spread_weighs_errors() -> None:
    error, none = np.array([0.1, 1.0]), np.zeros(2)
    one = covering_spread(error, none, share=0.5, weight=np.array([3.0, 1.0]))
    other = covering_spread(error, none, share=0.5, weight=np.array([1.0, 3.0]))
    assert (one, other) == pytest.approx((0.1 / Z90, 1.0 / Z90))


def test_ranges_of_a_stack_hold_its_runs_and_no_other_has_any() -> None:
    ranges = fitted_ranges("composer-fsdp")
    assert set(ranges) == {"devices", "seq_len", "hidden", "tp", "pp", "cp", "ep"}
    assert all(0 < low <= high for low, high in ranges.values())
    assert fitted_ranges("megatron-unfused") == {}
    assert fitted_ranges("no-such-stack") == {}
