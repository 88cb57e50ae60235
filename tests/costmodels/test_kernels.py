from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.kernels.attention import CONTEXT
from costmodels.kernels.borrowed import borrowed_coefficients
from costmodels.kernels.data import find_surface
from costmodels.kernels.machine import find_format, machine_of
from costmodels.kernels.times import KernelModel, kernel_model
from hardware.catalog import device_names, find_device
from hardware.errors import OutOfDomainError

SIZES = st.sampled_from([64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384])
MEASURED = ("a100-80gb", "h100", "h200", "b200", "gb200", "l40s")


def model(name: str, **options: bool) -> KernelModel:
    return kernel_model(find_device(name), **options)


def test_no_matmul_beats_the_rated_peak_or_the_memory() -> None:
    for name in MEASURED:
        device = find_device(name)
        sizes = np.array([1, 16, 128, 1024, 8192], dtype=float)
        m, n, k = (a.ravel() for a in np.meshgrid(sizes, sizes[2:], sizes[2:]))
        seconds = model(name).matmul_s(m, n, k)
        assert (seconds >= 0.93 * 2 * m * n * k / device.peak_flops_per_s("bf16")).all()
        assert (seconds >= 0.93 * 2 * n * k / device.memory_bytes_per_s).all()


def test_a_large_matmul_on_h100_sustains_its_published_share_of_peak() -> None:
    seconds = model("h100").matmul_s(8192, 8192, 8192)
    share = 2 * 8192**3 / seconds / 989e12
    assert 0.68 < share < 0.85  # 0.71 to 0.83 over frameworks, 0.803 the best shape found


def test_a_row_costs_the_same_alone_and_in_a_table() -> None:
    kernels = model("h100")
    m = np.array([[17, 4096], [300, 2048]])
    table = kernels.matmul(m, 4096, 4096)
    assert table.seconds.shape == table.log_sigma.shape == (2, 2)
    for i in np.ndindex(2, 2):
        assert table.seconds[i] == pytest.approx(float(kernels.matmul_s(m[i], 4096, 4096)))


def test_measured_devices_are_surer_than_others() -> None:
    shape = {"m": 4096, "n": 4096, "k": 4096}
    measured, borrowed, generic = (
        float(model(name).matmul(**shape).log_sigma) for name in ("h100", "h800", "mi300x")
    )
    assert measured < borrowed < generic
    assert model("h100").measured
    assert not model("h800").measured
    assert model("h800").source.file == "h100"
    assert model("mi300x").source.file == "generic"


def test_sigma_grows_outside_the_fitted_range() -> None:
    inside = model("a100-80gb").matmul(4096, 8192, 8192).log_sigma
    outside = model("a100-80gb").matmul(4096, 8192, 8_000_000).log_sigma
    assert outside > inside


def test_every_device_of_the_catalogue_has_an_answer() -> None:
    for name in device_names():
        kernels = model(name)
        times = (
            kernels.matmul_s(512, 4096, 4096),
            kernels.attention_s(batch=1, q_len=2048, kv_len=2048, heads=8, kv_heads=8, head_dim=128),
            kernels.decode_attention_s(batch=8, kv_len=2048, heads=8, kv_heads=8, head_dim=128),
            kernels.mla_decode_attention_s(batch=8, kv_len=2048, heads=16),
            kernels.experts_s(tokens=64, hidden=4096, ffn_hidden=1024, top_k=4, num_experts=64, ep=8),
            kernels.memory_s(1e9),
        )
        assert all(np.isfinite(t) and 0 < t < 1 for t in times), name


def test_devices_with_a_known_sustained_share_reach_it() -> None:
    device = find_device("mi300x")
    seconds = float(model("mi300x").matmul_s(8192, 8192, 8192))
    assert 2 * 8192**3 / seconds / device.peak_flops_per_s("bf16") == pytest.approx(0.514, rel=0.05)


def test_formats_without_a_rated_peak_are_refused() -> None:
    with pytest.raises(OutOfDomainError, match="a100-80gb has no rated fp8 peak"):
        model("a100-80gb").matmul_s(1, 128, 128, dtype="fp8")
    with pytest.raises(OutOfDomainError, match="no kernel model for dtype 'fp7'"):
        model("a100-80gb").matmul_s(1, 128, 128, dtype="fp7")


def test_narrow_weights_read_faster_when_few_rows_meet_them() -> None:
    kernels = model("h100")
    seconds = [float(kernels.matmul_s(8, 16384, 16384, dtype=d)) for d in ("bf16", "fp8", "int4-weight-only")]
    assert seconds[0] > seconds[1] > seconds[2]


def test_inside_a_step_weights_come_from_memory() -> None:
    shape = (1, 4096, 4096)
    assert model("l40s").matmul_s(*shape) > model("l40s", as_benchmarked=True).matmul_s(*shape)


def test_a_hidden_size_off_the_cache_line_is_slower_per_flop() -> None:
    kernels = model("a100-80gb")
    even = float(kernels.matmul_s(2048, 13824, 1728)) / (13824 * 1728)
    odd = float(kernels.matmul_s(2048, 14400, 1800)) / (14400 * 1800)
    assert odd > 1.1 * even


def test_backward_costs_2_5_forwards_at_lower_efficiency() -> None:
    shape = {"batch": 1, "q_len": 8192, "kv_len": 8192, "heads": 32, "kv_heads": 32, "head_dim": 128}
    kernels = model("a100-80gb")
    ratio = kernels.attention_backward_s(**shape) / kernels.attention_s(**shape)
    assert ratio == pytest.approx(2.5 / 0.85, rel=0.02)


def test_unfused_attention_is_slower_than_fused() -> None:
    kernels = model("a100-80gb")
    unfused = kernels.unfused_attention_s(batch=4, q_len=2048, kv_len=2048, heads=16, head_dim=128)
    fused = kernels.attention_s(batch=4, q_len=2048, kv_len=2048, heads=16, kv_heads=16, head_dim=128)
    assert unfused > 1.5 * fused


def test_expert_matmuls_are_no_better_than_one_product_of_their_rows() -> None:
    """One expert is that product; eight pad and re-read weights besides, at the clocks it was measured at."""
    h100 = model("h100")
    whole = h100.matmul_s(8192, 28672, 4096)
    assert h100.expert_matmul_s(1, 8192, 28672, 4096) == pytest.approx(whole)
    assert h100.expert_matmul_s(8, 1024, 28672, 4096) > 0.99 * whole
    assert h100.expert_matmul_s(256, 32, 28672, 4096) > 1.5 * whole


def test_grouped_matmuls_cost_at_least_their_flops() -> None:
    seconds = model("h100").grouped_matmul_s([1, 8], 1024, 4096, 4096)
    assert seconds[1] > 4 * seconds[0] > 0


@settings(deadline=None, max_examples=30)
@given(m=SIZES, n=SIZES, k=SIZES, faster=st.floats(1.0, 4.0))
def test_more_bandwidth_or_a_higher_peak_is_never_slower(m: int, n: int, k: int, faster: float) -> None:
    device = find_device("h100")
    for change in (
        {"memory_bytes_per_s": device.memory_bytes_per_s * faster},
        {"bf16_flops_per_s": device.peak_flops_per_s("bf16") * faster},
    ):
        better = kernel_model(replace(device, **change))
        assert better.matmul_s(m, n, k) <= kernel_model(device).matmul_s(m, n, k) * (1 + 1e-9)


@settings(deadline=None, max_examples=30)
@given(m=SIZES, n=SIZES, k=SIZES)
def test_physics_alone_never_takes_longer_for_half_the_work(m: int, n: int, k: int) -> None:
    kernels = model("mi300x")
    whole = kernels.matmul_s(m, n, k)
    assert kernels.matmul_s(max(m // 2, 1), n, k) <= whole * (1 + 1e-9)


def test_a_card_that_power_does_not_bind_sustains_more_of_its_peak_than_the_one_it_borrows_from() -> None:
    """The RTX 4090's die is the L40S's; its matrix units are rated at half rate, so its watts last."""
    assert model("rtx-4090").source.file == "l40s"
    side = 8192

    def share(name: str) -> float:
        peak = find_device(name).bf16_flops_per_s
        assert peak is not None
        return 2.0 * side**3 / float(model(name).matmul_s(side, side, side)) / peak

    assert share("rtx-4090") == pytest.approx(0.95, rel=0.02)
    assert share("l40s") < 0.75


def test_generic_softmax_costs_what_exponentials_cost_beside_the_matrix_units() -> None:
    device = find_device("rtx-pro-6000")
    found, _ = find_surface("generic", CONTEXT, find_format("bf16"))
    own = machine_of(device, find_format("bf16"))
    fast = replace(own, peak_flops_per_s=2.0 * own.peak_flops_per_s)
    slower, faster = (
        borrowed_coefficients(found, m, device, "generic")["softmax_flops"] for m in (own, fast)
    )
    assert faster == pytest.approx(2.0 * slower)
    assert slower < found.coefficients["softmax_flops"]


def test_large_products_of_a_throttled_table_run_as_on_the_same_dies_inside_a_step():
    """GB200's bf16 table says 0.40 of peak beyond a TFLOP a product; a step runs them as B200 does."""
    shape = {"m": 16384, "n": 28672, "k": 4096}

    def share(model: KernelModel) -> float:
        rate = 2.0 * 16384 * 28672 * 4096 / float(model.matmul_s(**shape))
        return rate / model.device.peak_flops_per_s("bf16")

    gb200, b200 = (kernel_model(find_device(name)) for name in ("gb200", "b200"))
    table = replace(gb200, as_benchmarked=True)
    assert share(gb200) == pytest.approx(share(b200), rel=0.05)
    assert share(table) < 0.45
    eight_bits = [float(model.matmul_s(**shape, dtype="fp8")) for model in (gb200, table)]
    assert eight_bits[0] == pytest.approx(eight_bits[1], rel=0.05)
