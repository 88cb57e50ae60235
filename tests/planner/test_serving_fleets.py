"""Several models, objectives, layers over unlike machines, comparing and explaining, the shipped examples."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from costmodels.job import Traffic
from hardware.errors import InfeasibleError, SpecError
from hardware.schema import read_yaml
from planner.cli.main import build_app
from planner.plan_io import read_plan
from planner.serving.flow import plan_serving
from planner.serving.parts import model_files, write_serving_plan
from planner.serving.request import read_serve_request
from planner.simulate.arrivals import make_trace
from planner.simulate.core import simulate
from planner.simulate.outcome import Measurement, latencies
from planner.simulate.plan_fleet import read_plan_fleet
from planner.workload import read_workload

EXAMPLES = Path(__file__).parents[2] / "examples" / "serving"
ONE = {
    "model": "llama-3.1-8b", "gpus": ("l4", "a100-80gb"), "workload": "fixed:512x128", "rate_per_s": 8.0,
    "slo_ttft_s": 2.0, "slo_tpot_s": 0.1, "percentile": 95.0, "usd_per_hour": {"l4": 0.7, "a100-80gb": 3.67},
    "simulate": False, "form": "joint",
}  # fmt: skip
TWO = {k: v for k, v in ONE.items() if k not in ("model", "rate_per_s")} | {
    "models": (
        {"model": "llama-3.1-8b", "rate_per_s": 8.0},
        {"model": "qwen3-8b", "rate_per_s": 4.0, "slo_tpot_s": 0.08},
    )
}


def plan(base=ONE, **changes):
    return plan_serving(read_serve_request(None, base | changes))


def run(*words):
    return CliRunner().invoke(build_app(list(words)), [str(w) for w in words])


def test_two_models_cost_what_each_costs_alone_until_they_compete_for_stock():
    both = plan(TWO).plans[0]
    alone = [plan(model="llama-3.1-8b"), plan(model="qwen3-8b", rate_per_s=4.0, slo_tpot_s=0.08)]
    costs = [f.plans[0].predicted.cost_usd_per_hour for f in alone]
    assert both.predicted.cost_usd_per_hour == pytest.approx(sum(costs))
    assert [m.model for m in both.predicted.by_model] == ["llama-3.1-8b", "qwen3-8b"]
    assert both.predicted.requests_per_s == pytest.approx(12.0)
    used = {m.device: m.count * m.devices_per_instance for f in alone for m in f.plans[0].mix}
    scarce = min(used)
    total = sum(m.count * m.devices_per_instance for m in both.mix if m.device == scarce)
    limited = plan(TWO, max_devices={scarce: total - 1}).plans[0]
    assert sum(m.count * m.devices_per_instance for m in limited.mix if m.device == scarce) < total
    assert limited.predicted.cost_usd_per_hour >= both.predicted.cost_usd_per_hour


def test_each_model_of_a_fleet_has_a_file_that_can_be_simulated_and_launched(tmp_path):
    file = plan(TWO)
    written = write_serving_plan(file, tmp_path / "fleet.json")
    assert [p.name for p in written] == ["fleet.json", "fleet.llama-3.1-8b.json", "fleet.qwen3-8b.json"]
    assert read_plan(written[0]).plans[0] == file.plans[0]
    for name, part in model_files(file).items():
        assert part.request["model"] == name
        assert all(m.model is None for m in part.plans[0].mix)
    fleet, slo = read_plan_fleet(written[2])
    assert len(fleet.pools) == len(read_plan(written[2]).plans[0].mix)
    assert slo.tpot_s == 0.08
    assert run("emit", written[1], "--target", "vllm", "-o", tmp_path / "job").exit_code == 0
    with pytest.raises(SpecError, match="one file for each"):
        read_plan_fleet(written[0])
    refused = run("emit", written[0], "--target", "vllm", "-o", tmp_path / "whole")
    assert refused.exit_code == 2
    assert "one file for each" in refused.output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": ({"model": "llama-3.1-8b"},), "model": "qwen3-8b"}, "models"),
        ({"models": ({"model": "llama-3.1-8b"}, {"model": "llama-3.1-8b"})}, "twice"),
        ({"models": ({"model": "llama-3.1-8b", "gpus": ["l4"]},)}, "gpus"),
        ({"models": ({"model": "llama-33b"},)}, "llama"),
        ({"gpus": (), "cluster": "no-such-cluster"}, "cluster"),
        ({"gpus": ()}, "gpus"),
        ({"cluster": "dgx-h100"}, "one of the two"),
        ({"objective": "speed"}, "objective"),
        ({"objective": "throughput"}, "needs a limit"),
    ],
)
def test_bad_fleets_are_named(changes, words):
    base = TWO if "models" in changes else ONE
    with pytest.raises(SpecError, match=words):
        plan(base, **changes)


def test_energy_draws_no_more_and_cost_costs_no_more():
    cheap, lean = plan(objective="cost").plans[0].predicted, plan(objective="energy").plans[0].predicted
    assert lean.watts <= cheap.watts
    assert cheap.cost_usd_per_hour <= lean.cost_usd_per_hour
    assert lean.bound_usd_per_hour is None
    assert lean.bound_watts == pytest.approx(lean.watts, rel=1e-4)


@pytest.mark.parametrize("form", ["joint", "split"])
def test_a_fleet_below_its_capacity_draws_less_than_when_every_instance_is_busy(form):
    def at(rate_per_s):
        return plan(gpus=("h100",), usd_per_hour={"h100": 3.0}, form=form, rate_per_s=rate_per_s)

    little, much = (at(rate).plans[0] for rate in (0.5, 4.0))
    assert little.strategy.instances == much.strategy.instances
    low, high = little.predicted, much.predicted
    assert low.watts == pytest.approx(high.watts)
    assert low.mean_watts < high.mean_watts <= high.watts
    assert low.joules_per_token == pytest.approx(low.mean_watts / low.throughput_tokens_per_s)
    assert low.joules_per_token > high.joules_per_token


def test_throughput_spends_the_budget_and_cost_finds_the_way_back():
    most = plan(objective="throughput", budget_usd_per_hour=8.0).plans[0].predicted
    assert most.cost_usd_per_hour <= 8.0
    assert most.requests_per_s <= most.bound_requests_per_s * (1 + 1e-6)
    back = plan(rate_per_s=most.requests_per_s).plans[0].predicted
    assert back.cost_usd_per_hour == pytest.approx(most.cost_usd_per_hour)
    capped = plan(objective="throughput", power_budget_w=300.0).plans[0].predicted
    assert capped.watts <= 300.0
    with pytest.raises(InfeasibleError):
        plan(power_budget_w=10.0)


def test_a_lost_zone_and_spares_leave_enough():
    base = plan(rate_per_s=40.0).plans[0]
    zones = plan(rate_per_s=40.0, num_zones=3, spare_instances=1).plans[0]
    for entry in zones.mix:
        left = entry.count - -(-entry.count // 3) - 1
        assert entry.load_frac * entry.count <= left + 1e-6
    assert zones.predicted.cost_usd_per_hour > base.predicted.cost_usd_per_hour


def test_layers_are_spread_where_no_instance_holds_the_model(tmp_path):
    request = read_serve_request(str(EXAMPLES / "layers.yaml"), {})
    file = plan_serving(request)
    best = file.plans[0]
    assert best.strategy.form == "layers"
    held = {n for s in best.layers for n in range(s.first_layer, s.first_layer + s.num_layers)}
    assert held == set(range(80))
    assert all(check.holds for check in best.certificate)
    assert best.predicted.tpot_s <= request.slo_tpot_s
    for device, most in request.max_devices.items():
        assert sum(m.count * m.devices_per_instance for m in best.mix if m.device == device) <= most
    path = tmp_path / "layers.json"
    write_serving_plan(file, path)
    with pytest.raises(SpecError, match="not simulated"):
        read_plan_fleet(path)
    assert "unlike machines" in run("emit", path, "--target", "vllm", "-o", tmp_path / "x").output
    fewer = plan_serving(read_serve_request(str(EXAMPLES / "layers.yaml"), {"rate_per_s": 0.01}))
    assert fewer.plans[0].predicted.num_devices <= best.predicted.num_devices
    with pytest.raises(InfeasibleError, match="machines together"):
        plan_serving(read_serve_request(str(EXAMPLES / "layers.yaml"), {"rate_per_s": 100.0}))
    unlimited = {"gpus": ("l4",), "max_devices": {}}
    with pytest.raises(InfeasibleError, match="max_devices"):
        plan_serving(replace(read_serve_request(str(EXAMPLES / "layers.yaml"), {}), **unlimited))


def test_compare_and_explain_from_the_command_line(tmp_path):
    write_serving_plan(plan(), tmp_path / "a.json")
    write_serving_plan(plan(rate_per_s=30.0), tmp_path / "b.json")
    shown = run("compare", tmp_path / "a.json", tmp_path / "b.json", "--json")
    found = json.loads(shown.stdout)
    assert found["instances"]
    cost = next(c for c in found["figures"] if c["name"] == "cost_usd_per_hour")
    assert cost["second"] > cost["first"]
    assert run("compare", tmp_path / "a.json", tmp_path / "b.json").exit_code == 0
    train = Path(__file__).parent / "golden" / "train_plan_v1.json"
    refused = run("compare", tmp_path / "a.json", train)
    assert refused.exit_code == 2
    assert "like with like" in refused.output
    write_serving_plan(plan(TWO, power_budget_w=9000.0, max_devices={"a100-80gb": 6}), tmp_path / "c.json")
    margins = json.loads(run("explain", tmp_path / "c.json", "--json").stdout)["margins"]
    named = {m["change"]: m["difference_usd_per_hour"] for m in margins}
    assert named["as asked, not simulated"] == 0
    assert named["slo_tpot_s 1.25 times looser"] <= 1e-9
    assert named["without power_budget_w"] <= 1e-9
    assert named["without max_devices.a100-80gb"] <= 1e-9
    assert run("explain", tmp_path / "c.json").exit_code == 0


@pytest.mark.parametrize("name", sorted(p.stem for p in EXAMPLES.glob("*.yaml") if p.stem != "layers"))
def test_the_plan_of_each_example_keeps_its_targets_on_traffic_it_has_not_seen(name, tmp_path):
    file = plan_serving(read_serve_request(str(EXAMPLES / f"{name}.yaml"), {"top": 1}))
    assert all(check.holds for check in file.plans[0].certificate)
    parts = write_serving_plan(file, tmp_path / "plan.json")
    for path in parts[1:] or parts:
        request = read_plan(path).request
        fleet, slo = read_plan_fleet(path)
        traffic: Traffic = read_workload(request["workload"], rate_per_s=request["rate_per_s"]).traffic
        kept = {target: [] for target in slo.targets}
        for seed in (101, 102, 103):
            trace = make_trace(traffic, num_requests=2000, seed=seed)
            seen = latencies(simulate(fleet, trace, seed=seed), Measurement(warm_up_s=0.1 * trace.span_s))
            for target, target_s in slo.targets.items():
                kept[target].append(float((seen.of(target) <= target_s).mean()))
        for target, shares in kept.items():
            assert np.mean(shares) >= slo.percentile / 100.0, (path.name, target, shares)


def test_examples_are_requests_that_say_how_they_are_run():
    for path in sorted(EXAMPLES.glob("*.yaml")):
        assert path.read_text(encoding="utf-8").startswith("# ")
        assert read_serve_request(str(path), {}).gpus == tuple(read_yaml(path)["gpus"])
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["slo_ttft_s"] > 0
