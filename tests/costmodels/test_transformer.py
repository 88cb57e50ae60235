"""The conventions of the operators, held against hand-worked sums."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.graph import Attention, Elementwise, Experts, Matmul, ModelGraph, Norm, Split
from costmodels.graph_import.parts import LatentAttention
from costmodels.graph_import.transformer import transformer_graph


def saved_bytes_per_token(model: ModelGraph, layer: int = 0, width: int = 2) -> float:
    total = 0.0
    for op in model.blocks[model.layers[layer]].operators:
        match op:
            case Matmul():
                total += 0 if op.shares_input else width * op.in_features * op.tokens_frac
            case Norm():
                total += 0 if op.shares_input else width * op.features * op.copies
            case Attention():
                heads = op.num_heads + op.num_kv_heads
                total += width * (heads * op.head_dim + op.num_kv_heads * op.value_dim)
            case Elementwise():
                total += width * op.saved + op.saved_mask
    return total


def gpt(**changes: object) -> ModelGraph:
    fields: dict[str, object] = {
        "name": "gpt",
        "hidden": 1024,
        "ffn_hidden": 4096,
        "num_layers": 3,
        "num_heads": 16,
        "vocab": 50257,
        "max_seq_len": 2048,
        "learned_positions": True,
        "dropout": True,
    }
    return transformer_graph(**(fields | changes))


def test_gpt_layer_keeps_34_bytes_per_token_and_hidden_element() -> None:
    assert saved_bytes_per_token(gpt()) == 34 * 1024


def test_activations_split_into_10_replicated_and_24_cut_by_tensor_parallelism() -> None:
    cut = 0.0
    for op in gpt().blocks[0].operators:
        if isinstance(op, Attention):
            cut += 2 * 3 * op.num_heads * op.head_dim
        elif isinstance(op, Matmul) and op.split is Split.ROW:
            cut += 2 * op.in_features
        elif isinstance(op, Elementwise) and op.split is Split.COLUMN:
            cut += 2 * op.saved
    assert cut == 24 * 1024
    assert saved_bytes_per_token(gpt()) - cut == 10 * 1024


def test_swiglu_layer_with_grouped_queries_by_hand() -> None:
    model = gpt(
        hidden=4096,
        ffn_hidden=14336,
        num_heads=32,
        num_kv_heads=8,
        gated=True,
        bias=False,
        rms=True,
        rotary=True,
        dropout=False,
        learned_positions=False,
    )
    norms, inputs = 2 * 4096, 4096 + 4096 + 4096 + 14336
    attention, swiglu = 4096 + 2 * 1024, 2 * 14336
    assert saved_bytes_per_token(model) == 2 * (norms + inputs + attention + swiglu)


def test_gpt_parameters_by_hand() -> None:
    h = 1024
    layer = 12 * h * h + 13 * h
    assert gpt().blocks[0].num_params == layer
    assert gpt().num_params == 3 * layer + 50257 * h + 2048 * h + 2 * h


def test_untied_head_counts_twice() -> None:
    assert gpt(tied=False).num_params - gpt().num_params == 50257 * 1024


def test_mixture_with_first_dense_layers_and_shared_experts() -> None:
    model = gpt(
        gated=True,
        num_experts=8,
        top_k=2,
        expert_ffn_hidden=512,
        num_shared_experts=2,
        first_dense_layers=1,
    )
    assert model.layers == (0, 1, 1)
    experts = next(op for op in model.blocks[1].operators if isinstance(op, Experts))
    assert experts.num_params == 8 * 3 * 1024 * 512 + 1024 * 8
    shared = next(op for op in model.blocks[1].operators if op.name == "shared_gate_up")
    assert shared.num_params == 1024 * 2 * 1024
    idle = 2 * 6 * 3 * 1024 * 512
    assert model.num_params - model.num_active_params == idle


def test_latent_attention_counts_the_cache_not_the_heads() -> None:
    mla = LatentAttention(
        kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    )
    model = gpt(hidden=7168, num_heads=128, bias=False, rms=True, mla=mla, dropout=False)
    by_name = {op.name: op for op in model.blocks[0].operators}
    attention = by_name["attention"]
    assert isinstance(attention, Attention)
    assert (attention.kv_latent_dim, attention.head_dim, attention.value_dim) == (576, 192, 128)
    # DeepSeek-V3: 187.1 M parameters of attention per layer with both latent norms.
    attention_params = sum(
        by_name[n].num_params
        for n in ("q_down", "q_latent_norm", "q_up", "kv_down", "kv_latent_norm", "kv_up", "attention_out")
    )
    assert attention_params == 187_107_328


def test_windows_alternate() -> None:
    model = gpt(num_layers=4, window=1024, window_layers=(True, False, True, False))
    assert model.layers == (0, 1, 0, 1)
    windows = [op.window for b in model.blocks for op in b.operators if isinstance(op, Attention)]
    assert windows == [1024, None]


def test_parallel_layers_reduce_once_and_save_their_input_once() -> None:
    shared = gpt(norm_layout="parallel-shared", dropout=False)
    assert shared.blocks[0].num_reductions == 1
    # One norm, one shared matmul input, no masks: 34 - 2 (norm) - 2 (input) - 2 (masks).
    assert saved_bytes_per_token(shared) == 28 * 1024
    separate = gpt(norm_layout="parallel", dropout=False)
    assert saved_bytes_per_token(separate) == 30 * 1024


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_heads": 15}, "must divide hidden"),
        ({"num_kv_heads": 5}, "num_kv_heads"),
        ({"num_experts": 4}, "top_k"),
        ({"num_experts": 4, "top_k": 5}, "top_k"),
        ({"window": 8, "window_layers": (True,)}, "window_layers has 1 entries for 3 layers"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"max_seq_len": None}, "learned_positions"),
    ],
)
def test_impossible_dimensions_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        gpt(**changes)


@given(
    layers=st.integers(1, 6),
    heads=st.sampled_from([4, 8]),
    group=st.sampled_from([1, 2, 4]),
    ffn=st.integers(1, 300),
    gated=st.booleans(),
    experts=st.integers(0, 4),
)
def test_parameters_are_the_sum_of_layers_and_ends(
    layers: int, heads: int, group: int, ffn: int, gated: bool, experts: int
) -> None:
    model = gpt(
        hidden=64,
        num_heads=heads,
        num_kv_heads=heads // group,
        ffn_hidden=ffn,
        num_layers=layers,
        gated=gated,
        num_experts=experts,
        top_k=min(experts, 1),
    )
    ends = (50257 + 2048 + 2) * 64
    assert model.num_params == sum(model.blocks[i].num_params for i in model.layers) + ends
    assert model.num_active_params <= model.num_params
