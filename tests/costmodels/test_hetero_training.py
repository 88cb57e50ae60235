import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.training.hetero import HeteroModel, HeteroPlan, HeteroStage, MemoryTerms, hetero_cost
from costmodels.training.layer_profiles import (
    LayerProfile,
    LayerTable,
    LinkCurve,
    read_layer_profile,
    read_layer_table,
)
from hardware.errors import OutOfDomainError, SpecError

FAST = LinkCurve(coefficients=(0.0, 0.0, 10.0), peak_bytes_per_s=10e9)


def profile(device, layer_s, batches=(1, 2)):
    times = {(b, 1): np.full(4, layer_s * b) for b in batches}
    return LayerProfile(device=device, layer_s=times, update_s={key: np.full(4, 0.5) for key in times})


def model(link=FAST, slow_s=2.0):
    layers = LayerTable(
        num_params=np.full(4, 1e9),
        activation_bytes=np.full(4, 1e9),
        output_bytes=np.full(4, 5e9),
        residual_bytes=1e8,
    )
    pairs = {(a, b): link for a in "AB" for b in "AB"}
    return HeteroModel(
        layers=layers,
        profiles={"A": profile("A", 1.0), "B": profile("B", slow_s)},
        pair_links=pairs,
        host_links={(*pair, 1): link for pair in pairs},
        memory=MemoryTerms(bytes_per_param=16.0, residual_tensors=2.0, constant_bytes=1e9),
    )


def plan(*stages, micro_batch=1, global_batch=4):
    return HeteroPlan(
        stages=tuple(HeteroStage(num_layers=n, replicas=r) for n, r in stages),
        micro_batch=micro_batch,
        global_batch=global_batch,
    )


def test_two_unlike_stages_by_hand():
    """A: 3 s + 0.6 x 0.5 s of link, B: 2 s + 2 x 0.5 s; four micro-batches."""
    cost = hetero_cost(plan((3, (("A", 1),)), (1, (("B", 1),))), model())
    assert cost.compute_s == pytest.approx(3 * 3.0 + 5.0)
    assert cost.step_s == pytest.approx(3 * 3.3 + 6.3 + 1.5)
    assert cost.gradient_s == 0.0
    assert cost.stage_bytes[0] == pytest.approx(16 * 3e9 + 2 * (3e9 + 2 * 3 * 1e8) + 1e9)
    assert cost.stage_bytes[1] == pytest.approx(16 * 1e9 + 1 * (1e9 + 2 * 1e8) + 1e9)


def test_a_gradient_ring_waits_for_its_slowest_stage():
    """Two replicas: 2 (D - 1) / D = 1 time 3e9 x 4 bytes over 10 GB/s."""
    two = (("A", 1), ("A", 1))
    cost = hetero_cost(plan((3, two), (1, two)), model())
    assert cost.gradient_s == pytest.approx(12e9 / 10e9)


def test_noise_in_a_small_batch_does_not_make_it_slower_than_a_larger_one():
    noisy = LayerProfile(
        device="A",
        layer_s={(1, 1): np.array([3.0]), (2, 1): np.array([2.0])},
        update_s={(1, 1): np.array([0.0]), (2, 1): np.array([0.0])},
    )
    assert noisy.times_s(1, 1).tolist() == [2.0]
    with pytest.raises(OutOfDomainError, match="no profile at micro-batch 4"):
        noisy.times_s(4, 1)


@given(st.floats(0.5, 20.0), st.floats(1.0, 3.0))
def test_a_faster_link_or_device_is_never_slower(rate, factor):
    shape = plan((2, (("A", 1), ("B", 1))), (2, (("B", 1), ("A", 1))))
    slow = LinkCurve(coefficients=(0.0, 0.0, rate), peak_bytes_per_s=50e9)
    fast = LinkCurve(coefficients=(0.0, 0.0, rate * factor), peak_bytes_per_s=50e9)
    assert hetero_cost(shape, model(fast)).step_s <= hetero_cost(shape, model(slow)).step_s + 1e-12
    assert hetero_cost(shape, model(slow, 1.5)).step_s <= hetero_cost(shape, model(slow, 2.0)).step_s + 1e-12


def test_plans_that_do_not_add_up_are_refused():
    with pytest.raises(OutOfDomainError, match="3 layers, the model 4"):
        hetero_cost(plan((3, (("A", 1),))), model())
    with pytest.raises(ValueError, match="same number of replicas"):
        plan((2, (("A", 1),)), (2, (("A", 1), ("B", 1))))
    with pytest.raises(ValueError, match="does not divide"):
        plan((4, (("A", 1),)), micro_batch=3)
    lonely = replace(model(), pair_links={})
    with pytest.raises(OutOfDomainError, match="no link from A to B"):
        hetero_cost(plan((2, (("A", 1),)), (2, (("B", 1),))), lonely)


def test_files_are_read_and_bad_ones_named(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"2": {"4": {"0": [1, 2, 3], "1": [4, 5, 6]}}}))
    read = read_layer_profile(path, "A")
    assert read.times_s(2, 4).tolist() == [3.0, 9.0]
    for table, why in (
        ({"2": {"4": {"0": [-1, 5, 3]}}}, r"layers.2.4.0.0: -1.* is too small"),
        ({"2": {"4": {"0": [1, float("nan"), 3]}}}, r"layers.2.4.0.1: nan"),
        ({"2": {"4": {"0": [1, 2]}}}, r"layers.2.4.0.2: is missing"),
        ({"2": {"4": {"0": [1, 2, 3], "2": [1, 2, 3]}}}, r"layers.2.4: lacks layer 1"),
        ({"2": {}}, "no layer times"),
        ([], "mapping"),
    ):
        path.write_text(json.dumps(table))
        with pytest.raises(SpecError, match=why):
            read_layer_profile(path, "A")
    path.write_text("{")
    with pytest.raises(SpecError, match="no JSON"):
        read_layer_profile(path, "A")
    path.write_text(json.dumps({"m": {"1": {"0": {}}}}))
    with pytest.raises(SpecError, match="no sizes of m"):
        read_layer_table(path, "m")
