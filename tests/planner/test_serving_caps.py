"""Power caps chosen together with batch and parallelism, gated on the tail of the latencies."""

from itertools import pairwise

import pytest

from hardware.catalog import find_device
from planner.plan_io import write_plan
from planner.serving.caps import power_caps
from planner.serving.flow import plan_serving
from planner.serving.request import read_serve_request
from planner.simulate.plan_fleet import read_plan_fleet
from planner.simulate.slowed_timer import SlowedTimer
from planner.simulate.timing import Load
from tests.planner.simulate.common import TIMER

ASKED = {
    "model": "llama-3.1-8b", "gpus": ("a100-80gb",), "workload": "fixed:512x128", "rate_per_s": 20.0,
    "slo_ttft_s": 3.0, "slo_tpot_s": 0.15, "percentile": 95.0, "simulate": False, "form": "joint",
}  # fmt: skip


def best(**changes):
    return plan_serving(read_serve_request(None, ASKED | changes)).plans[0]


def test_caps_fall_and_leave_less_and_stay_in_the_devices_range():
    device = find_device("a100-80gb")
    caps = power_caps(device)
    assert caps
    assert [c.cap_w for c in caps] == sorted((c.cap_w for c in caps), reverse=True)
    assert all(device.min_power_cap_w <= c.cap_w < device.tdp_w for c in caps)
    assert all(a.prefill_frac >= b.prefill_frac for a, b in pairwise(caps))
    assert all(0.0 < c.prefill_frac <= 1.0 and 0.0 < c.decode_frac <= 1.0 for c in caps)


def test_a_slowed_timer_divides_each_phase_by_what_is_left():
    slow = SlowedTimer(TIMER, prefill_frac=0.5, decode_frac=0.8)
    assert slow.decode_s(4, 100.0) == pytest.approx(TIMER.decode_s(4, 100.0) / 0.8)
    load = Load(prefill_tokens=100, prefill_pairs=5050.0)
    assert slow.step_s(load) == pytest.approx(2.0 * TIMER.step_s(load))
    decode = Load(num_seqs=2, kv_tokens=50.0)
    assert slow.lockstep_s([load, decode]) == pytest.approx(2.0 * TIMER.lockstep_s([load, decode]))
    assert slow.lockstep_s([decode]) == pytest.approx(TIMER.lockstep_s([decode]) / 0.8)
    assert slow.prompt_bound_s(100.0) == pytest.approx(2.0 * TIMER.prompt_bound_s(100.0))


def test_energy_and_a_power_budget_choose_caps_and_dollars_do_not():
    free, lean = best(), best(objective="energy")
    assert all(m.cap is None for m in free.mix)
    assert any(m.cap is not None for m in lean.mix)
    assert lean.predicted.watts < free.predicted.watts
    assert lean.predicted.ttft_s <= 3.0
    assert lean.predicted.tpot_s <= 0.15
    tight = best(power_budget_w=0.5 * (free.predicted.watts + lean.predicted.watts))
    assert tight.predicted.watts <= 0.5 * (free.predicted.watts + lean.predicted.watts)
    assert tight.predicted.cost_usd_per_hour >= free.predicted.cost_usd_per_hour


def test_a_tight_target_leaves_no_room_for_a_cap():
    free = best()
    tight = {"slo_tpot_s": 0.0125, "slo_ttft_s": 0.2}
    lean, fast = best(objective="energy"), best(objective="energy", **tight)
    most = max((m.cap.cap_w if m.cap else 400.0) for m in fast.mix)
    least = min((m.cap.cap_w if m.cap else 400.0) for m in lean.mix)
    assert most >= least
    assert free.predicted.num_devices <= lean.predicted.num_devices


def test_the_cap_is_replayed_with_the_plan(tmp_path):
    file = plan_serving(read_serve_request(None, ASKED | {"objective": "energy", "simulate": True}))
    assert file.plans[0].predicted.simulated.holds
    write_plan(file, tmp_path / "plan.json")
    fleet, _ = read_plan_fleet(tmp_path / "plan.json")
    entry = file.plans[0].mix[0]
    engine = next(p.engine for p in fleet.pools if p.name == entry.name)
    if entry.cap is not None:
        assert isinstance(engine.timer, SlowedTimer)
        assert engine.prefill_w <= entry.cap.cap_w * entry.devices_per_instance
