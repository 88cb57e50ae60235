from dataclasses import replace

import pytest

from costmodels.job import TrainingJob
from costmodels.models import find_model
from costmodels.power.draw import device_power
from costmodels.power.training import training_power
from hardware.catalog import find_device

JOB = TrainingJob(model=find_model("llama-3.1-70b"), seq_len=8192, global_batch=64)


def matmul_w(device, job=JOB):
    return training_power(find_device(device), job).natural_w("matmul")


def test_large_products_draw_nearly_rated_power_on_an_h200():
    assert 0.9 * 700 < matmul_w("h200") <= 700


@pytest.mark.parametrize("device", ["b200", "gb200"])
def test_four_bit_products_draw_less_than_sixteen_bit_ones(device):
    power = training_power(find_device(device), JOB)
    assert power.by_shape
    assert matmul_w(device, replace(JOB, precision="nvfp4")) < power.natural_w("matmul") <= power.rated_w


def test_other_phases_and_other_devices_keep_the_draw_of_their_family():
    power, family = training_power(find_device("b200"), JOB), device_power(find_device("b200"))
    assert {p: w for p, w in power.draw_frac.items() if p != "matmul"} == {
        p: w for p, w in family.draw_frac.items() if p != "matmul"
    }
    assert training_power(find_device("h100"), JOB) == device_power(find_device("h100"))


def test_a_format_that_was_not_measured_keeps_the_draw_of_the_family():
    assert not training_power(find_device("h200"), replace(JOB, precision="fp8")).by_shape
