import numpy as np
import pytest

from costmodels.power.response import ClockResponse
from hardware.errors import InputError
from planner.power.rows import RowSettings, row_choices
from planner.simulate.rows import (
    ControlDelays,
    RowPolicy,
    RowScenario,
    RowWorkload,
    ServerPower,
    simulate_rows,
)

SERVER = ServerPower(
    rated_w=1000.0,
    host_w=200.0,
    num_devices=1,
    device_rated_w=800.0,
    idle_frac=0.1,
    prompt_frac=1.0,
    token_frac=0.5,
)
WORK = RowWorkload(prompt_s=1.0, token_s=9.0, peak_load=0.5, trough_load=0.5, high_share=0.5)
CLOCKS = {
    "prompt_clock": ClockResponse(clock_share=0.9, static_frac=0.25),
    "token_clock": ClockResponse(clock_share=0.2, static_frac=0.25),
}


def _run(scenarios, **other):
    return simulate_rows(
        scenarios,
        **(
            {"server": SERVER, "workload": WORK, "delays": ControlDelays(), "duration_s": 7200.0}
            | CLOCKS
            | other
        ),
    )


def test_mean_power_and_latency_are_those_of_the_queue():
    row = _run(
        [RowScenario(num_servers=40, budget_w=40_000.0, policy=RowPolicy(), seed=1)], duration_s=20_000.0
    )[0]
    busy = 0.1 * 1.0 + 0.9 * 0.5
    expected = (200 + 800 * (0.5 * busy + 0.5 * 0.1)) / 1000
    assert row.power_frac[500:].mean() == pytest.approx(expected, rel=0.05)
    service, second = 10.0, 2 * (1.0**2 + 9.0**2 + 1.0 * 9.0)  # E[S], E[S^2] of the sum of two exponentials
    waiting = 0.05 * second / (2 * (1 - 0.5))  # Pollaczek-Khinchine
    both = np.concatenate([row.latency_high_s, row.latency_low_s])
    assert both.mean() == pytest.approx(service + waiting, rel=0.08)


def test_same_seed_same_row_and_one_more_server_leaves_the_others_alone():
    a, b, c = _run([RowScenario(num_servers=n, budget_w=1e5, policy=RowPolicy(), seed=3) for n in (4, 4, 5)])
    assert np.array_equal(a.power_frac, b.power_frac)
    assert (c.power_frac >= a.power_frac).all()


def test_capping_a_class_slows_that_class_only_and_draws_less():
    policy = RowPolicy(thresholds=(0.01,), low_clocks=(0.7,), high_clocks=(1.0,))
    free, capped = _run(
        [RowScenario(num_servers=20, budget_w=2e4, policy=p, seed=2) for p in (RowPolicy(), policy)]
    )
    assert capped.quantiles(0.5)[1] > free.quantiles(0.5)[1]
    assert np.array_equal(capped.latency_high_s, free.latency_high_s)
    assert capped.power_frac.mean() < free.power_frac.mean()
    assert capped.capped_frac > 0.9


def test_a_row_over_its_budget_brakes_and_power_falls():
    policy = RowPolicy(thresholds=(0.99,), low_clocks=(0.95,), high_clocks=(1.0,))
    row = _run([RowScenario(num_servers=20, budget_w=8_000.0, policy=policy, seed=2)])[0]
    assert row.num_brakes > 0


def test_more_servers_draw_more_and_thresholds_rise_in_order():
    settings = RowSettings(
        budget_w=8_000.0,
        server=SERVER,
        workload=WORK,
        delays=ControlDelays(),
        low_clocks=(0.9, 0.8),
        high_clock=0.9,
        seeds=(0, 1),
        hours=2.0,
        epsilon=1e-3,
        **CLOCKS,
    )
    few, many = row_choices(settings, (8, 10))
    assert few.uncontrolled_peak_frac < many.uncontrolled_peak_frac
    assert list(many.policy.thresholds) == sorted(many.policy.thresholds)
    assert few.num_brakes == 0


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: RowPolicy(thresholds=(0.9,)), "as many low_clocks"),
        (
            lambda: RowWorkload(prompt_s=1, token_s=1, peak_load=1.2, trough_load=0.1, high_share=0.5),
            "peak_load",
        ),
        (
            lambda: RowWorkload(prompt_s=1, token_s=1, peak_load=0.5, trough_load=0.1, high_share=2.0),
            "high_share",
        ),
    ],
)
def test_settings_out_of_range_are_refused(build, match):
    with pytest.raises(InputError, match=match):
        build()
