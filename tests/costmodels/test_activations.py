"""Saved activations against Korthikanti's rules and hand-worked operators."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.graph import ModelGraph
from costmodels.graph_import.parts import LatentAttention, SparseIndexer
from costmodels.graph_import.transformer import transformer_graph
from costmodels.memory.activations import saved_bytes
from costmodels.stacks import Stack

FLASH = Stack(name="flash")
UNFUSED = Stack(name="unfused", flash=False)
HIDDEN, HEADS = 1024, 16
STATS = 2 * 8
"""Two norms keep two fp32 numbers per token."""


def gpt(**changes):
    dims = {"name": "gpt", "hidden": HIDDEN, "ffn_hidden": 4 * HIDDEN, "num_layers": 4, "num_heads": HEADS,
            "vocab": 1024, "dropout": True}  # fmt: skip
    return transformer_graph(**(dims | changes))


def saved(
    model: ModelGraph, tp=1, *, sp=0, etp=1, stack=FLASH, seq_len=2048, precision="bf16", field="kept"
) -> float:
    ints = [np.array([n]) for n in (tp, etp, sp)]
    out = saved_bytes(model, *ints, seq_len=seq_len, precision=precision, stack=stack)
    return float(getattr(out, field)[0])


def flash_sums(tp):
    return 4 * HEADS / tp


def test_gpt_layer_keeps_34_bytes_per_hidden_element():
    assert saved(gpt()) == 34 * HIDDEN + STATS + flash_sums(1)


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallelism_keeps_ten_plus_24_over_t(tp):
    assert saved(gpt(), tp) == (10 + 24 / tp) * HIDDEN + STATS + flash_sums(tp)


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_sequence_parallelism_cuts_all_of_it(tp):
    assert saved(gpt(), tp, sp=1) == (34 * HIDDEN + STATS) / tp + flash_sums(tp)


def test_unfused_attention_keeps_five_bytes_per_score():
    assert saved(gpt(), stack=UNFUSED, field="scores") == 5 * HEADS * 2048
    assert saved(gpt(), 4, stack=UNFUSED, field="scores") == 5 * HEADS * 2048 / 4
    assert saved(gpt(), field="scores") == 0.0


def test_scores_without_dropout_are_the_softmax_output_and_what_the_stack_adds():
    model = gpt(dropout=False)
    assert saved(model, stack=UNFUSED, field="scores") == 2 * HEADS * 2048
    slow = replace(UNFUSED, score_bytes=6.0)
    assert saved(model, stack=slow, field="scores") == 6 * HEADS * 2048


def test_sparse_attention_keeps_scores_of_the_chosen_keys_only():
    latent = LatentAttention(kv_lora_rank=64, q_lora_rank=96, qk_nope_head_dim=32, qk_rope_head_dim=16,
                             v_head_dim=32)  # fmt: skip
    indexer = SparseIndexer(num_heads=4, head_dim=16, num_keys=256)
    dense = gpt(mla=latent, dropout=False)
    sparse = gpt(mla=latent, indexer=indexer, dropout=False)
    assert saved(dense, stack=UNFUSED, field="scores") == 2 * HEADS * 2048
    assert saved(sparse, stack=UNFUSED, field="scores") == 2 * HEADS * 256
    assert saved(sparse, stack=UNFUSED, seq_len=128, field="scores") == 2 * HEADS * 128


def test_swiglu_layer_of_llama():
    model = gpt(gated=True, bias=False, rms=True, dropout=False, ffn_hidden=3072)
    norms_and_inputs = 2 * 2 * HIDDEN + 2 * 2 * HIDDEN
    attention = 2 * 3 * HIDDEN + 2 * HIDDEN
    feed_forward = 2 * 2 * 3072 + 2 * 3072
    assert saved(model) == norms_and_inputs + attention + feed_forward + STATS + flash_sums(1)


def test_unfused_activation_keeps_the_activated_gate():
    model = gpt(gated=True, dropout=False, ffn_hidden=3072)
    slow = replace(FLASH, fused_activation=False)
    assert saved(model, 2, stack=slow) - saved(model, 2) == 2 * 3072 / 2
    assert saved(gpt(), stack=slow) == saved(gpt())


def test_unfused_norms_keep_an_fp32_copy_and_the_normalised_tensor():
    slow = replace(FLASH, fused_norm=False)
    assert saved(gpt(), stack=slow) - saved(gpt()) == 2 * (4 + 2 - 2) * HIDDEN


def test_eager_llama_layer_as_autograd_counts_it():
    """Eager LLaMA layer, h 512, f 1408, 8 heads, 256 tokens: torch's saved tensors are 35,848 B per token.

    Of these 12,288 are scores in fp32 and 16 bits; its norms keep one fp32 number where fused ones keep two.
    """
    model = transformer_graph(name="llama", hidden=512, ffn_hidden=1408, num_layers=1, num_heads=8, vocab=128,
                              gated=True, bias=False, rms=True, tied=False, rotary=True)  # fmt: skip
    eager = Stack(name="eager", flash=False, fused_norm=False, fused_activation=False, score_bytes=6.0)
    assert saved(model, stack=eager, seq_len=256, field="scores") == 12_288
    assert saved(model, stack=eager, seq_len=256) == 35_848 - 12_288 + 2 * 4


def test_parallel_halves_share_the_norm_input():
    pre, parallel = gpt(), gpt(norm_layout="parallel")
    assert saved(pre) - saved(parallel) == 2 * HIDDEN + HIDDEN


def test_grouped_keys_keep_less():
    assert saved(gpt()) - saved(gpt(num_kv_heads=4)) == 2 * 2 * (HIDDEN - HIDDEN / 4)


def test_fp8_halves_the_inputs_of_linear_layers():
    saving = saved(gpt()) - saved(gpt(), precision="fp8")
    assert saving == HIDDEN + HIDDEN + HIDDEN + 4 * HIDDEN


def test_routed_experts_scale_with_top_k():
    def moe(top_k):
        return gpt(num_experts=8, top_k=top_k, expert_ffn_hidden=512, gated=True, dropout=False)

    one = 2 * HIDDEN + 2 * HIDDEN + (2 * 2 + 2) * 512
    assert saved(moe(1), field="experts") == one
    assert saved(moe(4), field="experts") == 4 * one
    assert saved(moe(4)) - saved(moe(1)) == 3 * one


def test_layer_input_is_cut_by_sequence_parallelism_only():
    assert saved(gpt(), 4, field="layer_input") == 2 * HIDDEN
    assert saved(gpt(), 4, sp=1, field="layer_input") == 2 * HIDDEN / 4


def test_columns_equal_single_rows():
    degrees = np.array([1, 2, 4, 8])
    ones, sp = np.ones_like(degrees), np.array([0, 1, 0, 1])
    table = saved_bytes(gpt(), degrees, ones, sp, seq_len=2048, precision="bf16", stack=UNFUSED)
    for i, tp in enumerate(degrees):
        assert table.kept[i] == saved(gpt(), int(tp), sp=int(sp[i]), stack=UNFUSED)
