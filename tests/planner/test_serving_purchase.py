"""Serving plans bought on several offers, over the hours of a day."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from hardware.errors import InfeasibleError, SpecError
from planner.cli.main import build_app
from planner.plan_io import read_plan, write_plan
from planner.serving.explain import explain_serving
from planner.serving.flow import plan_serving
from planner.serving.request import read_serve_request

PRICES = """
provider: acme
offers:
  - {device: h100, name: term, kind: reserved, usd_per_hour: 3, commitment_months: 12, upfront_frac: 0.5}
  - {device: h100, name: hourly, kind: on-demand, usd_per_hour: 6 USD/h}
  - {device: h100, name: spot, kind: spot, usd_per_hour: 2 USD/h, interruptions_per_hour: 0.05}
  - {device: l4, name: small, kind: on-demand, usd_per_hour: 50 USD/h}
"""
DAY = (
    {"rate_frac": 1.0, "hours_per_day": 6.0},
    {"rate_frac": 0.5, "hours_per_day": 10.0},
    {"rate_frac": 0.2, "hours_per_day": 8.0},
)
FLAGS = {
    "model": "llama-3.1-8b", "gpus": ("l4", "h100"), "workload": "fixed:2048x512", "rate_per_s": 60.0,
    "slo_ttft_s": 2.0, "slo_tpot_s": 0.05, "percentile": 99.0, "simulate": False, "form": "joint",
}  # fmt: skip


@pytest.fixture
def prices(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(PRICES, encoding="utf-8")
    return str(path)


def plan(prices, **changes):
    return plan_serving(read_serve_request(None, FLAGS | {"prices": prices} | changes))


def test_the_base_is_reserved_the_peak_on_demand(prices):
    best = plan(prices, load_levels=DAY, offer_kinds=("on-demand", "reserved")).plans[0]
    bought = {p.offer: p for p in best.purchases}
    assert set(bought) == {"term", "hourly"}
    assert [level.rate_frac for level in best.levels] == [1.0, 0.5, 0.2]
    peak, middle, night = best.levels
    assert peak.offers["hourly"] > 0
    assert set(middle.offers) == set(night.offers) == {"term"}
    assert peak.offers["term"] == middle.offers["term"] == bought["term"].num_devices > night.offers["term"]
    hours = sum(level.hours_per_day * level.usd_per_hour for level in best.levels) / 24.0
    assert best.predicted.cost_usd_per_hour == pytest.approx(hours)
    assert best.predicted.cost_usd_per_hour == pytest.approx(sum(p.mean_usd_per_hour for p in best.purchases))
    assert best.predicted.bound_usd_per_hour == pytest.approx(hours, rel=1e-4)
    assert bought["term"].upfront_usd == pytest.approx(0.5 * bought["term"].committed_usd)
    assert bought["term"].committed_usd == pytest.approx(3.0 * 8760 * bought["term"].num_devices)
    assert all(check.holds for check in best.certificate)
    assert best.mix == peak.mix
    assert sum(sum(m.offers.values()) for m in night.mix) == sum(m.count for m in night.mix)
    assert best.routing == peak.routing
    assert sum(r.rate_per_s for r in night.routing) == pytest.approx(12.0)


def test_spot_stays_within_its_share_and_leaves_room_for_interruptions(prices):
    free = plan(prices).plans[0]
    assert free.levels[0].num_away > 0
    capped = plan(prices, max_spot_frac=0.3).plans[0]
    (kind,) = capped.mix
    assert 0 < capped.levels[0].offers["spot"] <= 0.3 * kind.count
    assert capped.predicted.cost_usd_per_hour > free.predicted.cost_usd_per_hour
    none = plan(prices, max_spot_frac=0.0).plans[0]
    assert "spot" not in none.levels[0].offers
    assert none.levels[0].num_away == 0


def test_one_on_demand_offer_gives_the_plan_of_one_price(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text("offers:\n  - {device: h100, kind: on-demand, usd_per_hour: 6 USD/h}\n", encoding="utf-8")
    listed = plan(str(path), gpus=("h100",)).plans[0]
    plain = plan(None, gpus=("h100",), usd_per_hour={"h100": 6.0}).plans[0]
    assert [replace(m, offers={}) for m in listed.mix] == list(plain.mix)
    assert listed.predicted.cost_usd_per_hour == pytest.approx(plain.predicted.cost_usd_per_hour)
    assert plain.purchases == plain.levels == ()


def test_hours_alone_need_no_price_file():
    best = plan(None, gpus=("h100",), usd_per_hour={"h100": 6.0}, load_levels=DAY).plans[0]
    peak = best.levels[0].usd_per_hour
    assert best.predicted.cost_usd_per_hour < peak == 6.0 * best.mix[0].count


def test_every_hour_is_replayed_and_the_plan_is_read_back(prices, tmp_path):
    traffic = {"workload": "azure-conv", "slo_ttft_s": 3.0, "slo_tpot_s": 0.1}
    kinds = ("on-demand", "reserved")
    file = plan(prices, simulate=True, load_levels=DAY, offer_kinds=kinds, **traffic)
    best = file.plans[0]
    assert [len(level.simulated) for level in best.levels] == [1, 1, 1]
    assert all(level.simulated[0].holds for level in best.levels)
    assert any("committed for 12 months" in note for note in file.diagnostics)
    write_plan(file, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json").plans[0] == best
    margins = {m.change: m.difference_usd_per_hour for m in explain_serving(file).margins}
    assert margins["without reserved offers"] >= 0.0
    assert margins["without on-demand offers"] >= 0.0


def test_other_objectives_and_limits_hold_on_offers(prices):
    most = plan(prices, objective="throughput", budget_usd_per_hour=20.0).plans[0].predicted
    assert most.cost_usd_per_hour <= 20.0
    assert most.requests_per_s <= most.bound_requests_per_s * (1 + 1e-6)
    spared = plan(prices, spare_instances=1, num_zones=2).plans[0]
    assert all(check.holds for check in spared.certificate)
    with pytest.raises(InfeasibleError, match=r"budget_usd_per_hour: 2 given, [\d.]+ would do"):
        plan(prices, budget_usd_per_hour=2.0)
    with pytest.raises(InfeasibleError, match=r"max_devices\.h100: 1 given"):
        plan(prices, gpus=("h100",), max_devices={"h100": 1})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offer_kinds": ("spot",), "gpus": ("l4",)}, r"no spot offer of l4 \(it has: small\)"),
        ({"provider": "other"}, "no on-demand/spot/reserved other offer of h100"),
        ({"gpus": ("a10g",)}, "of a10g .it has: none at all"),
        ({"spot": True}, "say offer_kinds"),
        ({"max_spot_frac": 1.5}, "max_spot_frac"),
        ({"load_levels": DAY[:2]}, "together are 16, not 24"),
        ({"load_levels": ({"rate_frac": 0.5, "hours_per_day": 24},)}, "one must be the peak"),
        ({"load_levels": ({"rate_frac": 1, "hours_per_day": 12},) * 2}, "appears twice"),
        ({"load_levels": DAY, "objective": "energy"}, "only cost is summed"),
        ({"max_devices": {"h100": 2}, "min_devices": {"h100": 4}}, r"2 is below min_devices\.h100, 4"),
    ],
)
def test_what_does_not_fit_together_is_refused(prices, changes, words):
    with pytest.raises(SpecError, match=words):
        plan(prices, **changes)
    with pytest.raises(SpecError, match="max_spot_frac: needs a price file"):
        plan(None, max_spot_frac=0.5)


def test_a_quota_below_what_is_committed_is_refused(prices):
    owned = (
        "{device: h100, name: owned, kind: reserved, usd_per_hour: 1, commitment_months: 1, min_devices: 8}"
    )
    Path(prices).write_text(f"{PRICES}  - {owned}\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"max_devices\.h100: 4 is below the 8 of offer owned"):
        plan(prices, max_devices={"h100": 4})
    kept = {p.offer: p.num_devices for p in plan(prices).plans[0].purchases}
    assert kept["owned"] >= 8


def test_the_price_file_is_named_with_the_place_of_what_is_wrong(prices):
    Path(prices).write_text(
        "offers:\n  - {device: h1000, kind: on-demand, usd_per_hour: 2}\n"
        "  - {device: h100-80gb, kind: on-demand, usd_per_hour: 3}\n",
        encoding="utf-8",
    )
    with pytest.raises(SpecError, match=r"prices\.yaml: offers\.0\.device: no device is called 'h1000'"):
        plan(prices)
    with pytest.raises(SpecError, match=r"absent\.yaml: cannot be read"):
        plan("absent.yaml")
    text = Path(prices).read_text(encoding="utf-8").replace("h1000", "l4")
    Path(prices).write_text(text, encoding="utf-8")
    assert plan(prices).plans[0].purchases


def test_spot_instances_are_a_service_of_their_own(prices, tmp_path):
    file = plan(prices, max_spot_frac=0.3, load_levels=DAY)
    write_plan(file, tmp_path / "plan.json")
    words = ["emit", str(tmp_path / "plan.json"), "--target", "vllm", "--scheduler", "skypilot"]
    shown = CliRunner().invoke(build_app(words), [*words, "-o", str(tmp_path / "job")])
    assert shown.exit_code == 0, shown.output
    assert "at other hours scale to the plan's levels" in shown.output
    services = [yaml.safe_load(p.read_text()) for p in sorted((tmp_path / "job").glob("*.sky.yaml"))]
    spot = {bool(s["resources"].get("use_spot")): s["service"]["replicas"] for s in services}
    (kind,) = file.plans[0].mix
    assert spot[True] == kind.offers["spot"]
    assert spot[False] == kind.count - kind.offers["spot"]
    checked = CliRunner().invoke(build_app(["verify"]), ["verify", str(tmp_path / "job")])
    assert checked.exit_code == 0, checked.output


def test_from_the_command_line(prices):
    asked = (
        "plan serve --model llama-3.1-8b --gpus h100 --workload fixed:2048x512 --rate-per-s 60 --no-simulate "
        "--slo-ttft-s 2 --slo-tpot-s 0.05 --max-spot-frac 0.3 --load-levels 1=6,0.5=10,0.2=8 --form joint"
    )
    words = [*asked.split(), "--prices", prices, "--offer-kinds", "reserved,spot"]
    shown = CliRunner().invoke(build_app(words), words)
    assert shown.exit_code == 0
    assert "term" in shown.output
    assert "12 months" in shown.output
    made = CliRunner().invoke(build_app([*words, "--json"]), [*words, "--json"])
    assert json.loads(made.stdout)["plans"][0]["levels"][2]["hours_per_day"] == 8.0
    wrong = [*words, "--load-levels", "1:6"]
    refused = CliRunner().invoke(build_app(wrong), wrong)
    assert refused.exit_code == 2
    assert "'1:6' is not SHARE=HOURS" in refused.output
