from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.power.response import (
    CapResponse,
    ClockResponse,
    cap_names,
    cap_response,
    fit_cap_responses,
    inert_cap,
)

PLAIN = CapResponse(
    device="x", static_frac=0.2, voltage_floor=0.7, spread_frac=0.05, log_sigma=0.05, measured=True
)
SHARP = replace(PLAIN, spread_frac=0.0)


def test_a_cap_gives_the_clock_at_which_the_draw_is_the_cap():
    x = 0.8  # above the voltage floor draw falls with the cube of the clock, below it in proportion
    assert SHARP.throughput_frac(0.2 + 0.8 * x**3, 1.0) == pytest.approx(x)
    assert SHARP.throughput_frac(0.2 + 0.8 * 0.5 * 0.7**2, 1.0) == pytest.approx(0.5)
    clock = ClockResponse(clock_share=1.0, static_frac=0.2, voltage_floor=0.7)
    assert SHARP.throughput_frac(float(clock.power_frac(0.6)), 1.0) == pytest.approx(0.6)


def test_a_cap_above_the_natural_draw_costs_nothing_and_one_at_it_bites_the_hot_kernels():
    assert PLAIN.throughput_frac(1.0, 0.4) == pytest.approx(1.0)
    assert SHARP.throughput_frac(0.6, 0.6) == pytest.approx(1.0)
    assert 0.95 < float(PLAIN.throughput_frac(0.6, 0.6)) < 1.0


def test_caps_and_draws_broadcast():
    grid = PLAIN.throughput_frac(np.array([0.5, 0.7])[:, None], np.array([0.6, 0.8, 0.9]))
    assert grid.shape == (2, 3)
    assert grid[1, 2] == pytest.approx(float(PLAIN.throughput_frac(0.7, 0.9)))


@given(st.floats(0.25, 1.2), st.floats(0.25, 1.2), st.floats(0.22, 1.2))
def test_more_cap_never_slows_and_more_draw_never_quickens(low, high, natural):
    low, high = sorted((low, high))
    assert PLAIN.throughput_frac(low, natural) <= PLAIN.throughput_frac(high, natural) + 1e-12
    assert PLAIN.throughput_frac(0.5, high) <= PLAIN.throughput_frac(0.5, low) + 1e-12


def test_a_cap_above_the_draw_is_inert():
    assert inert_cap([700, 300], [400, 400]).tolist() == [True, False]


def test_clock_response_by_hand():
    clock = ClockResponse(clock_share=0.8, static_frac=0.25, voltage_floor=0.7)
    assert clock.time_frac(0.5) == pytest.approx(0.8 / 0.5 + 0.2)
    assert clock.power_frac(0.5) == pytest.approx(0.25 + 0.75 * 0.5 * 0.49)
    assert clock.power_frac(1.0) == clock.time_frac(1.0) == 1.0


def test_shipped_responses_and_the_one_for_devices_never_measured():
    assert cap_names() == ("a40", "p100", "rtx-6000", "v100")
    assert cap_response("v100-32gb").device == "v100"
    assert not cap_response("h100").measured
    assert 0.6 < float(cap_response("h100").throughput_frac(0.6, 0.95)) < 1.0


def test_the_fit_finds_the_response_that_made_the_samples():
    rng = np.random.default_rng(0)
    device = rng.integers(0, 2, 300)
    cap, natural = rng.uniform(0.35, 1.0, 300), rng.uniform(0.4, 0.95, 300)
    truth = [
        PLAIN,
        replace(PLAIN, static_frac=0.3, voltage_floor=0.8),
    ]
    slow = np.array(
        [float(truth[d].throughput_frac(c, p)) for d, c, p in zip(device, cap, natural, strict=True)]
    )
    found = fit_cap_responses(device, cap, natural, slow, shrink=0.0)
    again = found.throughput_frac(device, cap, natural)
    assert np.abs(again / slow - 1).mean() < 0.01


def test_recent_devices_keep_what_was_published_of_them():
    """Splitwise: an H100's prompts, which draw about 0.9 of rated, keep 1 / 1.3 of their speed at half power;
    POLCA: training on A100 loses a tenth at 0.8 of its draw."""
    hopper, ampere = cap_response("h100"), cap_response("a100-80gb")
    assert hopper.throughput_frac(0.5, 0.9) == pytest.approx(1 / 1.3, abs=0.02)
    assert ampere.throughput_frac(0.8 * 0.9, 0.9) == pytest.approx(0.90, abs=0.02)
    assert hopper.published
    assert not hopper.measured
    assert not cap_response("b200").published
