import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.models import find_model
from costmodels.power.engine import engine_draw
from costmodels.power.serving import serving_power
from costmodels.power.smooth import SmoothFunction, fit_smooth
from hardware.catalog import find_device


def _draw(device: str, role: str = "both", batch: float = 64.0, model: str = "llama-3.1-70b"):
    return engine_draw(
        find_model(model),
        find_device(device),
        role,
        num_devices=4,
        weight_bytes=2.0,
        batch=batch,
        prompt_tokens=200.0,
        output_tokens=500.0,
    )


def test_a_measured_device_is_surer_than_one_that_borrows():
    h100, h200 = _draw("h100"), _draw("h200")
    assert h100.measured
    assert not h200.measured
    assert h100.log_sigma < h200.log_sigma
    assert "scaled" in h200.source


@given(st.sampled_from(["h100", "b200", "a100-80gb", "v100-32gb", "l4"]), st.floats(1, 1024))
def test_draw_and_interval_stay_between_waiting_and_rated_power(device, batch):
    draw = _draw(device, batch=batch)
    assert draw.low_w < draw.watts <= draw.rated_w
    assert draw.watts <= draw.high_w <= draw.rated_w


def test_a_busy_engine_draws_more_than_one_with_a_single_request():
    for device in ("h100", "b200"):
        assert _draw(device, batch=256).watts > 1.15 * _draw(device, batch=1).watts


def test_prompts_alone_draw_what_matrix_products_do():
    prompt = _draw("h200", role="prefill")
    assert prompt.watts == pytest.approx(700, rel=1e-3)


def test_shipped_fit_says_how_sure_it_is():
    fitted = serving_power()
    assert 0 < fitted.log_sigma < fitted.other_log_sigma < 0.6


def test_a_smooth_function_is_found_again_and_survives_its_file():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 3))
    target = np.sin(features[:, 0]) + 0.3 * features[:, 1]
    fitted = fit_smooth(features[:200], target[:200], ridge=1e-3)
    error = fitted.predict(features[200:]) - target[200:]
    assert np.sqrt((error**2).mean()) < 0.1
    again = SmoothFunction.from_json(fitted.to_json())
    assert again.predict(features[200:]) == pytest.approx(fitted.predict(features[200:]), abs=1e-4)
