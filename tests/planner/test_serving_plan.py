"""Serving plans: workload, capacity, limits, bad input, files."""

import json
import re
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
from typer.testing import CliRunner

from costmodels.job import Slo
from costmodels.models import find_model
from costmodels.serving.config import ServingConfig, ServingTable
from costmodels.serving.engine import find_engine
from costmodels.serving.machine import serving_machine
from hardware.catalog import find_device
from hardware.errors import InfeasibleError, InputError, SpecError, UnknownNameError
from planner.cli.main import build_app
from planner.plan_io import plan_text, read_plan, write_plan
from planner.serving.capacity import grid_times, joint_capacity, queue_wait_s
from planner.serving.demands import demand_of, with_late_sizes
from planner.serving.flow import plan_serving
from planner.serving.request import read_serve_request, resolve_serving
from planner.simulate.plan_fleet import read_plan_fleet
from planner.workload import bucketise, read_workload

FLAGS = {
    "model": "llama-3.1-8b", "gpus": ("l4", "a100-80gb"), "workload": "fixed:512x128", "rate_per_s": 4.0,
    "slo_ttft_s": 2.0, "slo_tpot_s": 0.1, "percentile": 95.0, "usd_per_hour": {"l4": 0.7, "a100-80gb": 3.67},
    "simulate": False,
}  # fmt: skip


def plan(**changes):
    return plan_serving(read_serve_request(None, FLAGS | changes))


def test_servers_of_one_queue_wait_less_and_one_alone_is_a_single_queue() -> None:
    load = np.array([0.5, 0.9])
    alone = queue_wait_s(load, np.array(2.0), 0.01, 1.0)
    assert alone == pytest.approx(2.0 / (1.0 - load) * np.log(load / 0.01))
    shared = [queue_wait_s(load, np.array(2.0), 0.01, 1.0, float(c)) for c in (1, 2, 4, 64)]
    assert shared[0] == pytest.approx(alone)
    assert all((more <= fewer).all() for fewer, more in pairwise(shared))
    assert shared[3][0] == 0.0
    waits = 0.9 ** (np.sqrt(10.0) - 1.0)
    assert shared[2][1] == pytest.approx(2.0 / (0.1 * 4.0) * np.log(waits / 0.01))


def test_buckets_keep_the_rate_and_the_mean():
    traffic = read_workload("azure-conv", rate_per_s=3.0).traffic
    buckets = bucketise(traffic)
    assert buckets.rate_per_s.sum() == pytest.approx(3.0)
    assert buckets.rate_per_s @ buckets.prompt_tokens / 3.0 == pytest.approx(traffic.mean_prompt_tokens)


@pytest.mark.parametrize(
    ("name", "prompt", "output"),
    [("azure-conv", (1155, 4142), (211, 601)), ("azure-code", (2048, 7436), (28, 251))],
)
def test_named_distribution_has_the_mean_and_the_tail_of_its_trace(name, prompt, output):
    traffic = read_workload(name, rate_per_s=1.0).traffic
    for tokens, (mean, p99) in ((traffic.prompt_tokens, prompt), (traffic.output_tokens, output)):
        order = np.argsort(tokens)
        lengths, reached = np.array(tokens)[order], np.cumsum(np.array(traffic.share_frac)[order])
        assert lengths @ np.diff(reached, prepend=0.0) == pytest.approx(mean, rel=0.03)
        assert lengths[np.searchsorted(reached, 0.985)] == pytest.approx(p99, rel=0.3)
        assert lengths[-1] > p99


def test_capacity_falls_with_length_and_with_tighter_targets():
    model, engine = find_model("llama-3.1-8b"), find_engine("vllm")
    machine = serving_machine(find_device("h100"))
    table = ServingTable.from_configs([ServingConfig(max_batch=256)])
    buckets = bucketise(read_workload("azure-conv", rate_per_s=1.0).traffic)
    times = grid_times(model, table, engine, machine, buckets)

    def rate(tpot_s):
        slo = Slo(tpot_s=tpot_s, ttft_s=5.0)
        return joint_capacity(model, table, engine, machine, buckets, slo, times=times).rate_per_s[0]

    assert (rate(0.02) <= rate(0.05) + 1e-12).all()
    same = buckets.output_up_to == 256
    assert (np.diff(rate(0.05)[same]) <= 1e-9).all()


def test_cached_prefixes_leave_time_for_more_requests():
    asked = {"gpus": ("a100-80gb",), "workload": "fixed:2000x50", "form": "joint", "rate_per_s": 20.0}
    asked |= {"usd_per_hour": {"a100-80gb": 3.67}}
    alone, cached = plan(**asked), plan(**asked, prefix_hit_frac=0.8)
    count = {name: found.plans[0].predicted.num_devices for name, found in (("no", alone), ("yes", cached))}
    assert count["yes"] < 0.6 * count["no"]


def test_a_prompt_of_one_attention_group_holds_up_all_groups_of_its_instance():
    model, engine = find_model("mixtral-8x7b"), find_engine("vllm")
    machine = serving_machine(find_device("h200"))
    table = ServingTable.from_configs(
        [ServingConfig(max_batch=256), ServingConfig(dp=4, ep=4, max_batch=256)]
    )

    def each_group(workload):
        buckets = bucketise(read_workload(workload, rate_per_s=1.0).traffic)
        times = grid_times(model, table, engine, machine, buckets)
        args = (model, table, engine, machine, buckets, Slo(tpot_s=0.05))
        found = joint_capacity(*args, times=times)
        return found.rate_per_s[1, 0] / 4 / found.rate_per_s[0, 0]

    assert each_group("fixed:8000x500") < 0.5 * each_group("fixed:16x500")


def test_plan_serves_all_and_proves_its_cost(tmp_path):
    found = plan()
    best = found.plans[0]
    assert all(check.holds for check in best.certificate)
    assert best.predicted.cost_usd_per_hour == pytest.approx(sum(m.count * m.usd_per_hour for m in best.mix))
    for route in best.routing:
        assert sum(route.shares.values()) == pytest.approx(1.0)
    write_plan(found, tmp_path / "plan.json")
    assert plan_text(read_plan(tmp_path / "plan.json")) == plan_text(found)


def test_same_request_same_bytes_but_for_the_clock():
    first, second = (json.loads(plan_text(plan())) for _ in range(2))
    for document in (first, second):
        document["search"].pop("wall_s")
    assert first == second


def test_limits_bind():
    base = plan(form="joint").plans[0].predicted.cost_usd_per_hour
    spare = plan(form="joint", spare_instances=1).plans[0].predicted.cost_usd_per_hour
    assert spare > base
    kept = plan(form="joint", min_devices={"a100-80gb": 3}).plans[0]
    assert sum(m.count * m.devices_per_instance for m in kept.mix if m.device == "a100-80gb") >= 3
    with pytest.raises(InfeasibleError, match="budget"):
        plan(form="joint", budget_usd_per_hour=0.5)


def _asked_for(changes, name):
    """Return what the refusal of a plan says that a limit would have to be."""
    with pytest.raises(InfeasibleError) as refused:
        plan(**changes)
    said = re.search(rf"{re.escape(name)}: [\d.]+ given, ([\d.]+) would do", str(refused.value))
    assert said, refused.value
    return float(said.group(1))


def test_a_refusal_says_with_which_stock_or_budget_the_workload_is_served():
    many = {"rate_per_s": 200.0, "gpus": ("l4",), "usd_per_hour": {"l4": 0.7}}
    needed = int(_asked_for(many | {"max_devices": {"l4": 2}}, "max_devices.l4"))
    assert plan(**many, max_devices={"l4": needed}).plans
    with pytest.raises(InfeasibleError):
        plan(**many, max_devices={"l4": needed - 1})
    dollars = _asked_for(many | {"budget_usd_per_hour": 1.0}, "budget_usd_per_hour")
    assert dollars == pytest.approx(plan(**many).plans[0].predicted.cost_usd_per_hour, rel=1e-3)


def test_limits_that_conflict_with_one_another_are_each_named_without_the_others():
    both = {"rate_per_s": 200.0, "max_devices": {"l4": 1, "a100-80gb": 0}, "budget_usd_per_hour": 0.8}
    with pytest.raises(
        InfeasibleError, match=r"budget_usd_per_hour: 0\.8 given, .* without the other limits"
    ):
        plan(**both)


def test_a_missing_price_names_the_option_that_gives_one():
    with pytest.raises(SpecError, match="--usd-per-hour h100=PRICE"):
        plan(gpus=("h100",), usd_per_hour={}, provider="nobody")


def test_simulation_confirms_the_plan():
    found = plan(simulate=True, form="joint")
    assert found.plans[0].predicted.simulated.holds


def test_targets_below_the_physical_bound_name_the_bound():
    with pytest.raises(InfeasibleError, match="lowest possible"):
        plan(slo_tpot_s=1e-4)


def test_a_device_that_cannot_hold_the_model_is_left_out_with_the_reason():
    found = plan(
        model="llama-3.1-70b",
        rate_per_s=0.5,
        gpus=("l4", "h200"),
        usd_per_hour={"l4": 0.1, "h200": 9.0},
        max_devices_per_instance=4,
        slo_ttft_s=5.0,
    )
    assert {m.device for m in found.plans[0].mix} == {"h200"}
    assert any("l4" in e.rule and "fit" in e.rule for e in found.search.excluded)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"usd_per_hour": {"l4": 0.0}}, SpecError, "usd_per_hour"),
        ({"usd_per_hour": {"h100": 1.0}}, SpecError, "no such device"),
        ({"gpus": ("l44",)}, SpecError, "l4"),
        ({"workload": "nothing"}, UnknownNameError, "workload"),
        ({"rate_per_s": None}, InputError, "rate_per_s"),
        ({"slo_ttft_s": None, "slo_tpot_s": None}, SpecError, "at least one target"),
        ({"draft_tokens": 2}, SpecError, "accepted"),
        ({"accepted_tokens": 0.8}, SpecError, "draft_tokens: 0 with accepted_tokens 0.8"),
        ({"lora_rank": 16}, SpecError, "num_adapters"),
    ],
)
def test_bad_requests_are_named(changes, error, words):
    with pytest.raises(error, match=words):
        plan_serving(read_serve_request(None, FLAGS | changes))


def test_bad_histogram_and_trace(tmp_path):
    histogram = tmp_path / "h.csv"
    histogram.write_text("prompt_tokens,output_tokens,share_frac\n100,10,0.5\n200,10,0\n", encoding="utf-8")
    with pytest.raises(SpecError, match="empty bucket"):
        read_workload(str(histogram), rate_per_s=1.0)
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n1,5,5\n0,5,5\n", encoding="utf-8")
    with pytest.raises(SpecError, match="line 3"):
        read_workload(str(trace), rate_per_s=None)
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n1,5,5\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"t\.csv: cannot be stretched to rate_per_s 2"):
        read_workload(str(trace), rate_per_s=2.0)
    trace.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"t\.csv: cannot be read as a CSV file"):
        read_workload(str(trace), rate_per_s=2.0)
    with pytest.raises(SpecError, match=r"percentile: 0.99 is too small"):
        plan(percentile=0.99)


def test_command_line_prints_the_file_and_uses_its_exit_codes():
    runner = CliRunner()
    words = ["plan", "serve", "--model", "llama-3.1-8b", "--gpus", "a100-80gb", "--workload", "fixed:512x128"]
    words += ["--rate-per-s", "2", "--slo-ttft-s", "2", "--no-simulate"]
    good = runner.invoke(build_app(words), [*words, "--slo-tpot-s", "0.1", "--json"])
    assert good.exit_code == 0
    assert json.loads(good.stdout)["kind"] == "serve"
    assert runner.invoke(build_app(words), [*words, "--slo-tpot-s", "0.00001"]).exit_code == 3
    estimate = [
        "estimate",
        "serve",
        "--model",
        "llama-3.1-8b",
        "--gpu",
        "h100",
        "--concurrency",
        "8",
        "--json",
    ]
    shown = runner.invoke(build_app(estimate), estimate)
    assert json.loads(shown.stdout)["tpot_s"] > 0
    big = ["estimate", "serve", "--model", "llama-3.1-405b", "--gpu", "l4"]
    assert runner.invoke(build_app(big), big).exit_code == 3


def test_adapters_cost_instances_and_reach_the_simulator_and_the_launch_files(tmp_path):
    plain, adapted = (plan(rate_per_s=40.0, **more) for more in ({}, {"lora_rank": 64, "num_adapters": 200}))
    assert adapted.plans[0].predicted.cost_usd_per_hour > plain.plans[0].predicted.cost_usd_per_hour
    path = tmp_path / "plan.json"
    write_plan(adapted, path)
    fleet, _ = read_plan_fleet(path)
    assert fleet.pools[0].engine.kv_tokens > 0
    words = ["emit", str(path), "--target", "vllm", "-o", str(tmp_path / "job")]
    assert CliRunner().invoke(build_app(words), words).exit_code == 0
    text = "".join(f.read_text() for f in (tmp_path / "job").rglob("*.sh"))
    assert "--enable-lora" in text
    assert "--max-lora-rank 64" in text


def test_explain_says_what_each_change_costs(tmp_path):
    write_plan(plan(), tmp_path / "plan.json")
    words = ["explain", str(tmp_path / "plan.json"), "--json"]
    shown = CliRunner().invoke(build_app(words), words)
    assert shown.exit_code == 0
    margins = {m["change"]: m["difference_usd_per_hour"] for m in json.loads(shown.stdout)["margins"]}
    assert margins["without l4"] is None or margins["without l4"] >= -1e-9
    assert margins["slo_tpot_s 1.25 times looser"] <= 1e-9


def test_few_requests_that_no_device_serves_in_time_do_not_refuse_all(tmp_path):
    path = tmp_path / "sizes.csv"
    path.write_text("prompt_tokens,output_tokens,share_frac\n512,128,0.97\n60000,16,0.03\n", encoding="utf-8")
    asked = {"workload": str(path), "gpus": ("l4",), "form": "joint", "slo_ttft_s": 1.0, "usd_per_hour": {}}
    with pytest.raises(InfeasibleError, match="bucket 65536/32"):
        plan(**asked, percentile=99.0)
    file = plan(**asked, percentile=95.0)
    assert any("sizes 65536/32 may miss the targets" in note for note in file.diagnostics)
    best = file.plans[0]
    assert best.predicted.ttft_s <= 1.0
    assert sum(route.rate_per_s for route in best.routing) == pytest.approx(4.0)
    checked = plan(**asked, percentile=95.0, simulate=True).plans[0].predicted.simulated
    assert checked.holds
    assert 0.95 <= checked.attainment_frac < 1.0


def test_stages_are_searched_and_keep_their_promise_when_replayed():
    asked = {
        "model": "llama-3.1-70b", "gpus": ("l40s",), "usd_per_hour": {"l40s": 2.0}, "formats": ("fp8",),
        "workload": "fixed:1000x200", "rate_per_s": 3.0, "slo_ttft_s": 5.0, "slo_tpot_s": 0.15,
        "simulate": True,
    }  # fmt: skip
    best = plan(**asked).plans[0]
    staged = [m for m in best.mix if m.config["pp"] > 1]
    assert staged
    assert all(m.devices_per_instance == m.config["tp"] * m.config["pp"] for m in staged)
    assert "-pp" in staged[0].name
    assert best.predicted.simulated.holds
    assert best.predicted.headroom_frac <= 0.2


def test_requests_beyond_the_models_context_are_told():
    notes = plan(
        workload="fixed:140000x64", gpus=("h100",), usd_per_hour={"h100": 5.0}, slo_ttft_s=60.0
    ).diagnostics
    assert any("100 % of the requests are longer than the 131072 tokens" in note for note in notes)


def test_accepted_drafts_shorten_the_time_per_token_of_an_estimate():
    def tpot_s(*words):
        line = ["estimate", "serve", "--model", "llama-3.1-8b", "--concurrency", "8", "--json", *words]
        shown = CliRunner().invoke(build_app(line), line)
        assert shown.exit_code == 0, shown.output
        return json.loads(shown.stdout)["tpot_s"]

    drafted = tpot_s("--draft-tokens", "2", "--accepted-tokens", "1.2")
    assert tpot_s() / 2.2 < drafted < tpot_s()


def test_a_dear_tail_may_be_late_unless_every_size_is_asked_for(tmp_path):
    middles = [NormalDist(np.log(7000.0), 1.25).inv_cdf((k + 0.5) / 40) for k in range(40)]
    rows = [f"{min(126_000, round(np.exp(m)))},350,0.025\n" for m in middles]
    path = tmp_path / "sizes.csv"
    path.write_text("prompt_tokens,output_tokens,share_frac\n" + "".join(rows), encoding="utf-8")
    asked = {
        "workload": str(path), "gpus": ("h100",), "usd_per_hour": {"h100": 4.0}, "form": "joint",
        "slo_ttft_s": 3.0, "rate_per_s": 3.4, "percentile": 90.0,
    }  # fmt: skip
    late, strict = plan(**asked), plan(**asked, every_size=True)
    assert any("may miss the targets" in note for note in late.diagnostics)
    assert not any("may miss the targets" in note for note in strict.diagnostics)
    assert late.plans[0].predicted.cost_usd_per_hour < strict.plans[0].predicted.cost_usd_per_hour
    request = read_serve_request(None, FLAGS | asked)
    demand = demand_of(request, *resolve_serving(request))
    for (relaxed,) in with_late_sizes((demand,)):
        assert 0.0 < relaxed.buckets.late_frac <= 0.08
        assert all(name.startswith(("more/", "65536/")) for name in relaxed.buckets.late)
