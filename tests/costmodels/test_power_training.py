from dataclasses import replace

import numpy as np
import pytest

from costmodels.job import TrainingJob
from costmodels.models import find_model
from costmodels.power.draw import device_power
from costmodels.power.sustained import fit_sustained_draw, sustained_draw, used_fracs
from costmodels.power.training import training_power
from hardware.catalog import find_device
from hardware.errors import OutOfDomainError

JOB = TrainingJob(model=find_model("llama-3.1-70b"), seq_len=8192, global_batch=64)
SMALL = replace(JOB, model=find_model("gpt2"), seq_len=1024)


def matmul_w(device, job=JOB):
    return training_power(find_device(device), job).natural_w("matmul")


@pytest.mark.parametrize("device", ["a100-80gb", "h100", "h200", "b200", "mi300x"])
def test_large_products_draw_nearly_rated_power(device):
    rated = find_device(device).tdp_w
    assert 0.9 * rated < matmul_w(device) <= rated


@pytest.mark.parametrize("device", ["h100", "h200", "b200", "gb200"])
def test_products_that_do_not_fill_the_device_draw_less(device):
    assert matmul_w(device, replace(SMALL, precision="fp8")) < 0.6 * matmul_w(device)


def test_other_phases_keep_the_draw_of_their_family():
    power, family = training_power(find_device("b200"), JOB), device_power(find_device("b200"))
    assert power.by_shape
    assert {p: w for p, w in power.draw_frac.items() if p != "matmul"} == {
        p: w for p, w in family.draw_frac.items() if p != "matmul"
    }


def test_a_format_that_the_device_does_not_run_is_refused():
    with pytest.raises(OutOfDomainError, match="fp8"):
        training_power(find_device("a100-80gb"), replace(JOB, precision="fp8"))


def test_draw_never_falls_with_use_and_never_exceeds_what_is_rated():
    use = np.linspace(0.0, 1.0, 21)
    by_arithmetic, by_memory = sustained_draw().share(use, 0.1), sustained_draw().share(0.1, use)
    for share in (by_arithmetic, by_memory):
        assert np.all(np.diff(share) >= 0)
        assert share[0] > 0
        assert share[-1] <= 1
    assert by_arithmetic[-1] == 1


def test_the_fit_finds_a_law_again_although_some_readings_lag():
    rng, law = np.random.default_rng(0), sustained_draw()
    flops, num_bytes = rng.uniform(0, 0.8, 600), rng.uniform(0, 0.9, 600)
    share = law.share(flops, num_bytes)
    share[::10] *= 0.5
    found = fit_sustained_draw(flops, num_bytes, share)
    assert np.median(np.abs(found.share(flops, num_bytes) / law.share(flops, num_bytes) - 1)) < 0.01


def test_use_is_arithmetic_and_traffic_over_what_is_rated():
    device, ones = find_device("h100"), np.ones(1)
    flops, num_bytes = used_fracs(device, "bf16", 4096 * ones, 4096 * ones, 4096 * ones, 1e-3 * ones)
    assert flops == pytest.approx(2 * 4096**3 / 1e-3 / device.bf16_flops_per_s)
    assert num_bytes == pytest.approx(3 * 2 * 4096**2 / 1e-3 / device.memory_bytes_per_s)
