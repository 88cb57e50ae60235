import numpy as np
import pytest

from costmodels.collectives.times import Collective, collective_s
from costmodels.kernels.times import kernel_model
from costmodels.parameters import rank_parameters
from costmodels.training.layer_costs import LayerCosts, Shards, layer_costs, matmul_dtype
from hardware.catalog import find_device
from tests.costmodels.cases import GPT, MIXTURE, cluster

KERNELS = kernel_model(find_device("a100-80gb"))
LEVELS = cluster().levels


def _costs(**columns: int) -> LayerCosts:
    defaults = {"tp": 1, "cp": 1, "ep": 1, "etp": 1, "micro_batch": 4, "sequence_parallel": 0}
    values = {n: np.array([columns.get(n, d)]) for n, d in defaults.items()}
    model = MIXTURE if columns.get("experts") else GPT
    return layer_costs(
        model, Shards(**values), seq_len=2048, precision="bf16", kernels=KERNELS, levels=LEVELS
    )


def test_gemm_time_is_that_of_the_four_matmuls() -> None:
    """QKV, projection, up and down of one GPT layer at their own shapes."""
    h, tokens = 2048, 4 * 2048
    shapes = [(3 * h, h), (h, h), (4 * h, h), (h, 4 * h)]
    expected = sum(float(KERNELS.matmul_s(tokens, n, k)[()]) for n, k in shapes)
    assert _costs().gemm_fwd_s[0] == pytest.approx(expected)


def test_tensor_parallel_volume() -> None:
    """Two all-reduces forward and two backward of s*b*h; sequence parallelism moves the same bytes in
    halves."""
    size = np.array([4 * 2048 * 2048 * 2.0])
    one, eight = np.array([1]), np.array([8])
    reduce = collective_s(Collective.ALL_REDUCE, size, one, eight, LEVELS)[0]
    scatter = collective_s(Collective.REDUCE_SCATTER, size, one, eight, LEVELS)[0]
    gather = collective_s(Collective.ALL_GATHER, size, one, eight, LEVELS)[0]
    plain, sequence = _costs(tp=8), _costs(tp=8, sequence_parallel=1)
    assert plain.tp_fwd_s[0] == pytest.approx(2 * reduce)
    assert sequence.tp_fwd_s[0] == pytest.approx(2 * (scatter + gather))
    assert sequence.tp_bwd_s[0] == pytest.approx(2 * (scatter + 2 * gather))


def test_one_rank_talks_to_nobody() -> None:
    costs = _costs()
    assert costs.tp_fwd_s[0] == costs.cp_s[0] == costs.ep_s[0] == costs.num_collectives[0] == 0


def test_ragged_cuts_are_noticed() -> None:
    """A hidden size of 14400 over 8 ranks leaves 1800 columns, no multiple of 64 (measured: 27 % slower)."""
    assert _costs(tp=8).misaligned_s[0] == 0
    ragged = _costs(tp=3)
    assert ragged.misaligned_s[0] > 0


def test_sequence_parallelism_cuts_norms() -> None:
    assert _costs(tp=8, sequence_parallel=1).norm_fwd_s[0] < _costs(tp=8).norm_fwd_s[0]


def test_experts_exchange_tokens() -> None:
    costs = _costs(ep=8, experts=1)
    assert costs.ep_s[0] > 0
    assert costs.expert_fwd_s[0] > 0
    assert _costs(ep=8, experts=1, micro_batch=8).ep_s[0] > costs.ep_s[0]


def test_the_host_launches_collectives_as_it_does_operators() -> None:
    """Two all-reduces forward, in halves under sequence parallelism."""
    alone = _costs().num_ops[0]
    assert _costs(tp=8).num_ops[0] == alone + 2
    assert _costs(tp=8, sequence_parallel=1).num_ops[0] == alone + 4


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16", "bf16"), ("fp16", "bf16"), ("mxfp8", "fp8"), ("fp8-cs", "fp8"), ("nvfp4", "nvfp4")],
)
def test_matmul_dtype(precision: str, dtype: str) -> None:
    assert matmul_dtype(precision) == dtype


def test_rank_parameters_sum_to_the_model() -> None:
    """Cut over tp and pp, the pieces come together again (biases and norms are replicated over tp)."""
    one = np.array([1])
    p = rank_parameters(GPT, one, one, one, one, one)
    assert p.layers_max[0] * p.layer_dense[0] + p.first[0] + p.last[0] == pytest.approx(GPT.num_params)
    cut = rank_parameters(GPT, np.array([8]), one, one, one, one)
    assert p.layer_dense[0] / 8 < cut.layer_dense[0] < p.layer_dense[0] / 8 * 1.01
    experts = rank_parameters(MIXTURE, one, one, np.array([16]), one, one)
    assert experts.layer_expert[0] == pytest.approx(3 * 1024 * 2048)
    uneven = rank_parameters(GPT, one, np.array([5]), one, one, one)
    assert uneven.layers_max[0] == 5
