"""FLOPs, bytes and caches of models against hand-worked numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.graph import (
    Attention,
    Elementwise,
    Embedding,
    Experts,
    Generic,
    Matmul,
    Norm,
    Split,
    StateSpace,
)
from costmodels.model_flops import (
    forward_flops_per_token,
    hardware_flops,
    keys_per_query,
    kv_cache_bytes,
    operator_bytes,
    operator_flops,
    training_flops,
)
from costmodels.models import find_model

LAYERS, SEQ, HIDDEN, VOCAB = 96, 2048, 12288, 51200


def attention(**changes: object) -> Attention:
    fields: dict[str, object] = {
        "name": "a",
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "value_dim": 8,
    }
    return Attention(**(fields | changes))


def test_gpt_training_flops_follow_the_published_formula() -> None:
    main = 72 * LAYERS * SEQ * HIDDEN**2
    expected = main * (1 + SEQ / (6 * HIDDEN) + VOCAB / (12 * HIDDEN * LAYERS))
    assert training_flops(find_model("gpt3-175b"), SEQ) == pytest.approx(expected, rel=1e-12)


def test_halved_causal_attention_halves_the_score_term_only() -> None:
    main = 72 * LAYERS * SEQ * HIDDEN**2
    expected = main * (1 + SEQ / (12 * HIDDEN) + VOCAB / (12 * HIDDEN * LAYERS))
    assert training_flops(find_model("gpt3-175b"), SEQ, causal_halved=True) == pytest.approx(expected)


def test_full_recomputation_follows_the_published_formula() -> None:
    main = 96 * LAYERS * SEQ * HIDDEN**2
    expected = main * (1 + SEQ / (6 * HIDDEN) + VOCAB / (16 * HIDDEN * LAYERS))
    assert hardware_flops(find_model("gpt3-175b"), SEQ, "full") == pytest.approx(expected)


def test_selective_recomputation_adds_one_forward_of_the_scores() -> None:
    # Scores cost one part forward and two backward; computing them again makes four parts of three.
    main = 72 * LAYERS * SEQ * HIDDEN**2
    expected = main * (1 + SEQ / (6 * HIDDEN) * 4 / 3 + VOCAB / (12 * HIDDEN * LAYERS))
    assert hardware_flops(find_model("gpt3-175b"), SEQ, "selective") == pytest.approx(expected)
    assert hardware_flops(find_model("gpt3-175b"), SEQ, "none") == training_flops(
        find_model("gpt3-175b"), SEQ
    )


def test_grouped_queries_and_gated_feed_forward_by_hand() -> None:
    h, f, kv, s, v = 4096, 14336, 1024, 8192, 128256
    layer = 2 * h * (h + 2 * kv) + 2 * h * h + 6 * h * f + 4 * s * h
    assert forward_flops_per_token(find_model("llama-3.1-8b"), s) == 32 * layer + 2 * h * v


def test_mixture_counts_chosen_experts_and_the_router() -> None:
    op = Experts(name="e", hidden=16, ffn_hidden=32, num_experts=8, top_k=2)
    assert operator_flops(op, 100) == 2 * (2 * 3 * 16 * 32 + 16 * 8)


def test_dense_model_costs_about_twice_its_parameters_per_token() -> None:
    model = find_model("llama-2-7b")
    assert forward_flops_per_token(model, 1) == pytest.approx(2 * (model.num_params - 32000 * 4096), rel=1e-3)


def test_other_operators_by_hand() -> None:
    scan = StateSpace(name="s", inner=10, state=16, conv=4)
    assert operator_flops(scan, 100) == 10 * (8 + 96)
    generic = Generic(name="g", flops=7.0, reads=1, writes=1, saved=0)
    assert operator_flops(generic, 100) == 7.0
    sparse = attention(sparse_keys=10, index_heads=2, index_dim=4)
    assert operator_flops(sparse, 100) == 2 * 10 * 4 * 16 + 2 * 100 * 2 * 4
    pooled = Matmul(name="p", in_features=3, out_features=5, split=Split.NONE, tokens_frac=0.5)
    assert operator_flops(pooled, 100) == 15
    for op in (Norm(name="n", features=4), Embedding(name="e", num_rows=4, features=4)):
        assert operator_flops(op, 100) == 0


@pytest.mark.parametrize(("window", "seen", "halved"), [(None, 100, 50), (40, 40, 32), (500, 100, 50)])
def test_keys_per_query(window: int | None, seen: float, halved: float) -> None:
    op = attention(window=window)
    assert keys_per_query(op, 100, causal_halved=False) == seen
    assert keys_per_query(op, 100, causal_halved=True) == halved


@given(seq=st.integers(1, 5000), window=st.integers(1, 6000))
def test_halved_window_is_the_mean_of_what_each_query_sees(seq: int, window: int) -> None:
    mean = np.minimum(np.arange(seq) + 0.5, window).mean()
    halved = keys_per_query(attention(window=window), seq, causal_halved=True)
    assert halved == pytest.approx(mean, abs=0.5)


def test_cache_per_token_by_hand() -> None:
    # Two bytes each: 80 layers of 8 heads of 128, keys and values; 61 layers of 512 + 64.
    assert kv_cache_bytes(find_model("llama-3.1-70b"), 1) == 2 * 80 * 2 * 8 * 128
    assert kv_cache_bytes(find_model("deepseek-v3"), 1000) == 2 * 61 * 576 * 1000


def test_windows_cap_the_cache() -> None:
    model = find_model("gemma-2-9b")
    per_layer = 2 * 2 * 8 * 256
    short, long = kv_cache_bytes(model, [1000, 10_000])
    assert short == 42 * per_layer * 1000
    assert long == 21 * per_layer * (4096 + 10_000)


def test_states_do_not_grow_with_the_context() -> None:
    model = find_model("mamba-130m")
    one, many = kv_cache_bytes(model, [1, 100_000])
    assert one == many == 24 * (4 * 1536 * 16 + 2 * 1536 * 4)


def test_hybrid_cache_is_attention_plus_states() -> None:
    model = find_model("jamba-v0.1")
    first, second = kv_cache_bytes(model, [1000, 2000])
    assert second - first == 4 * 2 * 2 * 8 * 128 * 1000


def test_encoders_keep_no_cache_and_cross_attention_does() -> None:
    assert kv_cache_bytes(find_model("bert-base"), 512) == 0
    per_token = 2 * 2 * 6 * 8 * 64
    assert kv_cache_bytes(find_model("t5-small"), 512) == 2 * per_token * 512


def test_indexer_keys_are_cached_too() -> None:
    assert kv_cache_bytes(find_model("deepseek-v3.2"), 1) == 2 * 61 * (576 + 128)


def test_operator_bytes_by_hand() -> None:
    matmul = Matmul(name="m", in_features=4, out_features=8, split=Split.COLUMN, bias=True)
    assert operator_bytes(matmul, 10) == 2 * (4 * 8 + 8 + 10 * 12)
    assert operator_bytes(matmul, 10, element_bytes=1) == 4 * 8 + 8 + 10 * 12
    assert operator_bytes(attention(), 10) == 2 * 10 * (4 + 2) * 16
    assert operator_bytes(Norm(name="n", features=4, copies=3), 10) == 2 * (4 + 10 * 24)
    assert operator_bytes(Embedding(name="e", num_rows=99, features=4), 10) == 2 * 10 * 8
    assert operator_bytes(Elementwise(name="x", reads=4, writes=2, saved=0), 10) == 2 * 10 * 6
    scan = StateSpace(name="s", inner=10, state=16, conv=4, num_params=5)
    assert operator_bytes(scan, 10) == 2 * (5 + 10 * 40)


def test_one_token_reads_its_own_experts_only() -> None:
    op = Experts(name="e", hidden=16, ffn_hidden=32, num_experts=8, top_k=2)
    expert, router = 3 * 16 * 32, 16 * 8
    moved = 2 * (2 * 16 + 3 * 32) + 8
    assert operator_bytes(op, 1) == pytest.approx(2 * (router + 2 * expert + moved))
    assert operator_bytes(op, 10_000) == pytest.approx(2 * (router + 8 * expert + 10_000 * moved))
