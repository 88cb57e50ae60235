"""A replay lasts until queues have settled; of a large fleet, a part of the same proportions is replayed."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.job import Slo, Traffic
from costmodels.models import find_model
from costmodels.serving.config import ServingConfig, ServingTable
from costmodels.serving.engine import find_engine
from costmodels.serving.machine import serving_machine
from costmodels.traces import Trace
from hardware.catalog import find_device
from hardware.errors import InfeasibleError
from planner.cli.render_serving import print_serving_plans
from planner.serving import flow
from planner.serving.capacity import grid_times, joint_capacity
from planner.serving.flow import plan_serving
from planner.serving.replay_part import part_of_workload, replay_part
from planner.serving.request import read_serve_request
from planner.simulate.settling import settling_s
from planner.workload import Workload, bucketise
from tests.planner.conftest import Meshwright

SIZE = {"prompt_tokens": (1000,), "output_tokens": (100,), "share_frac": (1.0,)}


def test_a_replay_lasts_five_requests_and_thirty_times_to_the_first_token() -> None:
    assert settling_s(Slo(ttft_s=0.5, tpot_s=0.1), 100.0) == pytest.approx(5 * (0.5 + 100 * 0.1))
    assert settling_s(Slo(ttft_s=2.0, tpot_s=0.01), 100.0) == pytest.approx(30 * 2.0)
    assert settling_s(Slo(e2e_s=3.0), 100.0) == pytest.approx(5 * 3.0)


def test_a_small_fleet_is_replayed_whole() -> None:
    part = replay_part(np.array([3, 0, 1]), 50.0, 30.0, np.array([0.7, 0.0, 0.3]))
    assert part.count.tolist() == [3, 0, 1]
    assert (part.load_frac, part.num_requests) == (1.0, 2500)


def test_one_instance_cannot_be_divided_and_gets_more_requests_up_to_a_limit() -> None:
    assert replay_part(np.array([1]), 500.0, 30.0, np.ones(1)).num_requests == 15_000
    assert replay_part(np.array([1]), 5e6, 30.0, np.ones(1)).num_requests == 20_000


def test_a_large_fleet_is_replayed_in_its_proportions() -> None:
    part = replay_part(np.array([120, 60]), 5000.0, 32.0, np.array([0.7, 0.3]))
    assert part.count.tolist() == [6, 3]
    assert part.load_frac == pytest.approx(1 / 20)
    assert part.num_requests == 8000


def test_the_scarcer_phase_of_a_split_fleet_is_as_loaded_in_the_part_as_in_the_whole() -> None:
    part = replay_part(np.array([21, 7]), 5000.0, 30.0, np.ones(2))
    assert part.count.tolist() == [3, 1]
    assert part.load_frac == pytest.approx(1 / 7)
    assert part.num_requests == 20_000


def test_a_kind_that_carries_little_does_not_decide_how_a_fleet_is_divided() -> None:
    part = replay_part(np.array([44, 1]), 5000.0, 30.0, np.array([0.98, 0.02]))
    assert part.count.tolist() == [2, 1]
    assert part.load_frac == pytest.approx(2 / 44)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5000), st.floats(0.0, 1.0)), min_size=1, max_size=4).filter(
        lambda kinds: any(count for count, _ in kinds)
    ),
    st.floats(0.1, 1e6),
    st.floats(1.0, 300.0),
)
def test_no_item_that_carries_much_is_less_loaded_than_planned_and_none_vanishes(
    kinds: list[tuple[int, float]], rate_per_s: float, settle_s: float
) -> None:
    count, carried = np.array([c for c, _ in kinds]), np.array([share for _, share in kinds])
    part = replay_part(count, rate_per_s, settle_s, carried)
    assert np.array_equal(part.count > 0, count > 0)
    assert (part.count <= count).all()
    assert 0.0 < part.load_frac <= 1.0
    assert 2500 <= part.num_requests <= 20_000
    much = (count > 0) & (carried >= 0.1)
    assert (part.count[much] / count[much] <= part.load_frac + 1e-12).all()


def test_part_of_a_trace_keeps_its_span() -> None:
    trace = Trace(
        arrival_s=np.arange(1000) * 0.01, prompt_tokens=np.full(1000, 5), output_tokens=np.full(1000, 5)
    )
    whole = Workload(traffic=Traffic(rate_per_s=100.0, **SIZE), trace=trace)
    tenth = part_of_workload(whole, 0.1)
    assert tenth.trace is not None
    assert len(tenth.trace) == 100
    assert tenth.trace.span_s == pytest.approx(trace.span_s, rel=0.02)
    assert tenth.traffic.rate_per_s == pytest.approx(10.0)
    assert part_of_workload(whole, 1.0) is whole


@pytest.mark.parametrize("rate_per_s", [1000.0, 200_000.0])
def test_a_high_rate_is_not_served_by_fewer_devices_than_arithmetic_needs(rate_per_s: float) -> None:
    asked = {"model": "llama-3.1-8b", "gpus": ("h100",), "workload": "fixed:1024x128"}
    limits = {"rate_per_s": rate_per_s, "slo_ttft_s": 1.0, "slo_tpot_s": 0.05, "top": 2}
    file = plan_serving(read_serve_request(None, asked | limits))
    flops_per_s = rate_per_s * (1024 + 128) * 2 * 7.5e9
    for plan in file.plans:
        assert all(check.holds for check in plan.certificate)
        assert (
            sum(entry.count * entry.devices_per_instance for entry in plan.mix) > flops_per_s / 0.8 / 989e12
        )


def test_a_check_that_fails_is_shown_with_its_plan(capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"model": "llama-3.1-8b", "gpus": ("h100",), "workload": "fixed:1024x128", "simulate": False}
    file = plan_serving(
        read_serve_request(None, asked | {"rate_per_s": 5.0, "slo_ttft_s": 1.0, "slo_tpot_s": 0.05})
    )
    first = file.plans[0]
    broken = replace(first.certificate[0], holds=False, detail="size 7 is not served")
    print_serving_plans(replace(file, plans=(replace(first, certificate=(broken,)),)))
    assert "does NOT hold: every-size-served-and-limits-kept: size 7 is not served" in capsys.readouterr().out


def test_a_stock_that_formulas_refuse_is_used_where_replays_hold() -> None:
    asked = {"model": "llama-3.1-8b", "gpus": ("h100",), "workload": "fixed:1024x128", "form": "joint"}
    limits = {"rate_per_s": 200.0, "slo_ttft_s": 1.0, "slo_tpot_s": 0.05}
    free = plan_serving(read_serve_request(None, asked | limits)).plans[0]
    assert free.predicted.headroom_frac < 0.0
    stock = {"max_devices": {"h100": free.predicted.num_devices}}
    within = plan_serving(read_serve_request(None, asked | limits | stock)).plans[0]
    assert within.predicted.num_devices == free.predicted.num_devices
    assert all(check.holds for check in within.certificate)
    with pytest.raises(InfeasibleError, match="limit max_devices"):
        plan_serving(read_serve_request(None, asked | limits | stock | {"simulate": False}))


def test_decoding_that_needs_headroom_does_not_keep_prompts_from_needing_less() -> None:
    asked = {"model": "gemma-3-27b", "gpus": ("h100",), "workload": "fixed:30000x100", "form": "split"}
    plan = plan_serving(
        read_serve_request(None, asked | {"rate_per_s": 2.0, "slo_ttft_s": 5.0, "slo_tpot_s": 0.05})
    ).plans[0]
    assert all(check.holds for check in plan.certificate)
    prompts = sum(m.count * m.devices_per_instance for m in plan.mix if m.role == "prefill")
    assert prompts <= 8  # one headroom for both roles: 22; no queue in common: 16


def test_less_headroom_for_prompts_is_tried_with_a_little_more_for_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def solved(
        request: None, fleet: SimpleNamespace, steps: list[list[int]], replays: None
    ) -> SimpleNamespace:
        ((prefill, decode),) = steps
        late = [0] if prefill + 4 * decode < 50 else []
        worth = {"minimised": 10 * prefill + decode, "scale": 1.0, "same_counts": lambda other: False}
        return SimpleNamespace(request=request, fleet=fleet, late=late, **worth)

    monkeypatch.setattr(flow, "_solved", solved)
    fleet, steps = SimpleNamespace(slots=(SimpleNamespace(roles=("prefill", "decode")),)), [[10, 10]]
    found = flow._lowered(solved(None, fleet, steps, None), steps, None)
    assert steps == [[0, 13]]
    assert found.minimised == 13


@pytest.mark.parametrize(
    ("kept_frac", "asked"), [(lambda step: 0.9, 4), (lambda step: 0.5 + 0.02 * step, 12)]
)
def test_headroom_is_raised_while_it_helps(
    monkeypatch: pytest.MonkeyPatch, kept_frac: Any, asked: int
) -> None:
    calls = []

    def solved(request: None, fleet: None, steps: list[list[int]], replays: None) -> SimpleNamespace:
        calls.append(steps[0][0])
        kept = kept_frac(steps[0][0])
        late = [] if kept >= 0.99 else [0]
        return SimpleNamespace(request=request, fleet=fleet, late=late, kept_frac=kept, step=steps[0][0])

    monkeypatch.setattr(flow, "_solved", solved)
    first = solved(None, None, [[13]], None)
    found = flow._raised(first, [[13]], None)
    assert len(calls) == 1 + asked
    assert found.step == (13 if found.late else 25)


def test_the_lowest_possible_latency_is_that_of_a_request_alone_however_arrivals_vary() -> None:
    model, engine = find_model("llama-3.1-70b"), find_engine("vllm")
    table = ServingTable.from_configs([ServingConfig(tp=8)])
    machine = serving_machine(find_device("h100"))
    buckets = bucketise(
        Traffic(rate_per_s=1.0, prompt_tokens=(60_000,), output_tokens=(20,), share_frac=(1.0,))
    )
    args = (model, table, engine, machine, buckets, Slo(ttft_s=60.0))
    times = grid_times(*args[:-1])
    steady, bursty = (
        joint_capacity(*args, times=times, arrival_cv=cv).best_ttft_s[0, 0] for cv in (0.0, 13.0)
    )
    assert bursty == pytest.approx(steady, rel=0.01)


def test_a_best_plan_that_fails_a_check_is_warned_of(meshwright: Meshwright) -> None:
    words = "plan serve --model gemma-3-27b --gpus h100 --workload fixed:30000x100 --rate-per-s 2"
    limits = "--slo-ttft-s 5 --slo-tpot-s 0.05 --max-devices h100=20 --form joint --json"
    found = meshwright(*words.split(), *limits.split())
    document = json.loads(found.stdout)
    held = all(check["holds"] for check in document["plans"][0]["certificate"])
    assert held is ("warning: no plan within the limits keeps every check" not in found.stderr)
    assert found.exit_code == (0 if held else 3)


def test_a_plan_that_misses_its_targets_is_shown_and_said_to_be_none(
    meshwright: Meshwright, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "plan serve --model llama-3.1-8b --gpus h100 --workload fixed:1024x128 --rate-per-s 5"
    limits = "--slo-ttft-s 1 --slo-tpot-s 0.05 --max-devices h100=2 --form joint --json"
    checked = flow.Replays.check

    def late(*args: Any) -> Any:
        return replace(checked(*args), holds=False)

    monkeypatch.setattr(flow.Replays, "check", late)
    found = meshwright(*words.split(), *limits.split())
    assert found.exit_code == 3
    assert "#1 fails targets-hold-in-simulation" in found.stderr
    assert json.loads(found.stdout)["plans"]
