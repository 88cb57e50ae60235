import numpy as np
import pytest

from costmodels.power.draw import Facility, device_power, energy_cost, part_draw_frac, step_energy_j
from costmodels.power.serving import ServingRuns, fit_serving_power, serving_step_s
from hardware.catalog import find_device
from hardware.errors import InputError


def test_measured_devices_keep_their_own_phases_and_others_take_the_mean():
    h200, h100 = device_power(find_device("h200")), device_power(find_device("h100"))
    assert h200.measured
    assert not h100.measured
    assert h200.draw_frac["experts"] == pytest.approx(0.9223)
    assert h100.natural_w("experts") == pytest.approx(700 * (0.8503 + 0.821 + 0.9223) / 3)


@pytest.mark.parametrize("device", ["a100-80gb", "h200", "mi300x"])
def test_products_that_fill_a_device_draw_what_it_is_rated(device):
    power = device_power(find_device(device))
    assert 0.95 * power.rated_w < power.natural_w("matmul") <= power.rated_w


def test_energy_of_a_step_is_the_sum_over_its_parts():
    power = device_power(find_device("h200"))
    parts = {"forward": np.array([1.0, 2.0]), "bubble": np.array([0.5, 0.0])}
    expected = 8 * (power.natural_w("matmul") * parts["forward"] + power.blocked_w * parts["bubble"])
    assert step_energy_j(power, parts, 8) == pytest.approx(expected)
    assert step_energy_j(power, parts, 8, cap_w=300.0)[1] == pytest.approx(8 * 300.0 * 2.0)
    assert part_draw_frac(power, "tp_comm") == 0.4


def test_caps_outside_the_range_are_refused():
    with pytest.raises(InputError, match="200 to 700 W"):
        device_power(find_device("h100")).check_cap(100.0)


def test_site_power_money_and_carbon_by_hand():
    site = Facility(host_w_per_device=300.0, pue=1.25, usd_per_j=0.1 / 3.6e6, kg_co2_per_j=0.4 / 3.6e6)
    assert site.site_w(700.0, 8) == pytest.approx(1000 * 8 * 1.25)
    money, carbon = energy_cost(3.6e6, site)
    assert (money, carbon) == (pytest.approx(0.125), pytest.approx(0.5))
    assert energy_cost(1.0, Facility(host_w_per_device=0.0)) == (None, None)
    with pytest.raises(InputError, match="pue"):
        Facility(host_w_per_device=0.0, pue=0.9)


def _runs(num: int) -> ServingRuns:
    rng = np.random.default_rng(0)
    ones = np.ones(num)
    params = rng.choice([8e9, 14e9, 70e9], num)
    return ServingRuns(
        active_params=params, total_params=params, weight_bytes=2 * ones,
        batch=rng.choice([8.0, 64.0, 512.0], num),
        num_devices=rng.choice([1.0, 2.0, 4.0], num), prompt_tokens=200 * ones, output_tokens=500 * ones,
        num_layers=32 * ones, cache_bytes_per_token=131_072 * ones, moe=0 * ones, recurrent=0 * ones,
        image=0 * ones, video=0 * ones, device=0 * ones, flops_per_s=989e12 * ones,
        memory_bytes_per_s=3.35e12 * ones, rated_w=700 * ones,
    )  # fmt: skip


def test_a_decode_step_reads_the_weights_once():
    memory_s, compute_s, _ = serving_step_s(_runs(1))
    run = _runs(1)
    assert memory_s[0] == pytest.approx(2 * run.total_params[0] / run.num_devices[0] / 3.35e12)
    assert compute_s[0] == pytest.approx(
        2 * run.active_params[0] * run.batch[0] / run.num_devices[0] / 989e12
    )


def test_joules_per_token_follow_from_draw_and_throughput():
    runs = _runs(120)
    watts, rate = 300 + 0.3 * runs.batch, 1e13 * np.sqrt(runs.batch) / runs.active_params
    fitted = fit_serving_power(runs, watts_per_device=watts, tokens_per_s=rate)
    assert fitted.watts_per_device(runs) == pytest.approx(watts, rel=0.1)
    assert fitted.joules_per_token(runs) == pytest.approx(
        fitted.watts_per_device(runs) * runs.num_devices / fitted.tokens_per_s(runs)
    )
