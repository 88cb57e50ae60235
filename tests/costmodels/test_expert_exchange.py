import numpy as np
import pytest

from costmodels.collectives.expert_exchange import (
    ExchangeKernel,
    distinct_places,
    moe_combine_s,
    moe_dispatch_s,
    moe_log_sigma,
)
from hardware.levels import Level, LinkKind

H100 = (
    Level(
        name="node", size=8, bytes_per_s=450e9, latency_s=1e-6, kind=LinkKind.SWITCH, technology="nvlink4",
        in_network_reduce=True,
    ),
    Level(name="world", size=512, bytes_per_s=50e9, latency_s=5e-6, kind=LinkKind.RAIL, technology="ib"),
)  # fmt: skip
FP8, BF16 = 7392.0, 14336.0


def call(function, kernel, tokens, row, ep, **more):
    return float(
        function(
            kernel,
            np.array([tokens]),
            np.array([row]),
            np.array([8]),
            np.array([1]),
            np.array([ep]),
            H100,
            **more,
        )[0]
    )


def test_expected_distinct_places():
    assert distinct_places(np.array([2.0]), np.array([1.0]))[0] == pytest.approx(1.0)
    assert distinct_places(np.array([2.0]), np.array([2.0]))[0] == pytest.approx(1.5)
    assert distinct_places(np.array([8.0]), np.array([8.0]), 4.0)[0] == 4.0


@pytest.mark.parametrize(
    ("ep", "dispatch_us", "combine_us"), [(32, 155, 273), (64, 173, 314), (128, 192, 369), (256, 194, 360)]
)
def test_low_latency_kernels_against_the_published_table(ep, dispatch_us, combine_us):
    """DeepEP's own table, 128 tokens, hidden 7168, top 8; not what the constants were read from."""
    kernel = ExchangeKernel.LOW_LATENCY
    assert call(moe_dispatch_s, kernel, 128.0, FP8, ep) * 1e6 == pytest.approx(dispatch_us, abs=20)
    assert call(moe_combine_s, kernel, 128.0, BF16, ep) * 1e6 == pytest.approx(combine_us, rel=0.15)


@pytest.mark.parametrize(("ep", "measured_us"), [(8, 965.6), (16, 1658.8), (32, 3585.7)])
def test_normal_dispatch_of_8192_tokens(ep, measured_us):
    seconds = call(moe_dispatch_s, ExchangeKernel.NORMAL, 8192.0, FP8, ep)
    assert seconds * 1e6 == pytest.approx(measured_us, rel=0.25)


def test_packing_beats_plain_copies_across_nodes():
    plain = call(moe_dispatch_s, ExchangeKernel.NCCL, 4096.0, BF16, 32)
    packed = call(moe_dispatch_s, ExchangeKernel.NORMAL, 4096.0, BF16, 32)
    limited = call(moe_dispatch_s, ExchangeKernel.NORMAL, 4096.0, BF16, 32, max_nodes=2)
    assert limited < packed < plain


@pytest.mark.parametrize("kernel", list(ExchangeKernel))
def test_one_rank_exchanges_nothing_and_more_tokens_take_longer(kernel):
    assert call(moe_dispatch_s, kernel, 128.0, FP8, 1) == 0.0
    times = [call(moe_combine_s, kernel, t, BF16, 16) for t in (1.0, 128.0, 4096.0)]
    assert 0 < times[0] < times[1] < times[2]
    assert 0 < moe_log_sigma(kernel) < 1
