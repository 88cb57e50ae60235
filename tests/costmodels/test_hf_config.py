"""Hugging Face configs: what each family means, and what is said of a wrong one."""

import json
from pathlib import Path
from typing import Any

import pytest

from costmodels.graph import Attention, Experts, Matmul, ModelGraph, Norm, Split, StateSpace
from costmodels.graph_import.hf_config import model_from_hf_config, model_types, read_hf_config
from hardware.errors import SpecError

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def build(**changes: object) -> ModelGraph:
    return model_from_hf_config(LLAMA | changes, "tiny", where="config.json")


def problems(config: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        model_from_hf_config(config, "tiny", where="some/config.json")
    assert caught.value.where == "some/config.json"
    return caught.value.problems


def attention_of(model: ModelGraph, layer: int) -> Attention:
    operators = model.blocks[model.layers[layer]].operators
    return next(op for op in operators if isinstance(op, Attention))


def test_llama_layer_by_hand() -> None:
    h, kv, f = 4096, 1024, 14336
    model = build()
    assert model.blocks[0].num_params == h * (h + 2 * kv) + h * h + 3 * h * f + 2 * h
    assert not model.tied_head
    assert build(tie_word_embeddings=True).num_params == model.num_params - 128256 * h


def test_missing_head_counts_mean_as_many_as_queries() -> None:
    config = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
    assert attention_of(model_from_hf_config(config, "mha"), 0).num_kv_heads == 32


def test_all_problems_come_at_once() -> None:
    config = LLAMA | {"hidden_size": "4096", "intermediate_size": -1}
    del config["num_hidden_layers"]
    assert set(problems(config)) == {
        "hidden_size: '4096' is not a whole number of at least 1",
        "intermediate_size: -1 is not a whole number of at least 1",
        "num_hidden_layers: missing; it must be a whole number of at least 1",
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_attention_heads": 30, "num_key_value_heads": 30}, "num_attention_heads: 30 does not divide"),
        ({"num_key_value_heads": 5}, "num_key_value_heads: 5 does not divide num_attention_heads (32)"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: 'yes' is neither true nor false"),
        ({"attention_dropout": 3}, "attention_dropout: 3 is not a rate"),
        ({"hidden_size": True}, "hidden_size: True is not a whole number"),
        ({"model_type": "lama"}, "model_type: 'lama' is not a known model type; did you mean llama"),
        ({"model_type": None}, "model_type: missing"),
        ({"model_type": "mixtral"}, "num_local_experts: missing"),
        (
            {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 4},
            "num_experts_per_tok: 4 experts per token of 2 experts in all",
        ),
        ({"model_type": "gemma3", "text_config": 3}, "text_config: 3 is not a mapping"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types: 1 entries"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "MX"}, "hybrid_override_pattern: 'MX'"),
        ({"model_type": "t5", "feed_forward_proj": "tanh"}, "feed_forward_proj: 'tanh' is not one of"),
    ],
)
def test_wrong_values_are_named_with_what_is_accepted(changes: dict[str, Any], says: str) -> None:
    assert any(problem.startswith(says) for problem in problems(LLAMA | changes))


def test_nested_keys_are_dotted() -> None:
    found = problems({"model_type": "gemma3", "text_config": {"hidden_size": 64, "num_hidden_layers": 2}})
    assert found == ("text_config.intermediate_size: missing; it must be a whole number of at least 1",)


@pytest.mark.parametrize("family", model_types())
def test_an_empty_config_of_any_type_is_refused_cleanly(family: str) -> None:
    assert problems({"model_type": family})


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "not JSON"), ("[]", "holds a list"), (b"\xff\xfe", "cannot be read")],
)
def test_unreadable_files(tmp_path: Path, content: str | bytes, says: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecError, match=says):
        read_hf_config(file)


def test_file_is_named_after_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "config.json"
    file.write_text(json.dumps(LLAMA))
    assert read_hf_config(file).name == "mine"
    assert read_hf_config(file).source == str(file)


def test_gemma2_alternates_windows_and_norms_four_times() -> None:
    model = build(model_type="gemma2", head_dim=256, sliding_window=4096)
    assert [attention_of(model, i).window for i in range(4)] == [4096, None, 4096, None]
    assert sum(isinstance(op, Norm) for op in model.blocks[0].operators) == 4


def test_gemma3_has_five_windows_to_one_full_layer() -> None:
    config = LLAMA | {"model_type": "gemma3_text", "num_hidden_layers": 12, "sliding_window": 512}
    model = model_from_hf_config(config, "gemma")
    full = [i for i in range(12) if attention_of(model, i).window is None]
    assert full == [5, 11]


def test_qwen2_has_biases_on_queries_keys_and_values_only() -> None:
    model = build(model_type="qwen2")
    biases = {op.name: op.bias for op in model.blocks[0].operators if isinstance(op, Matmul)}
    assert biases == {"qkv": True, "attention_out": False, "gate_up": False, "down": False}


def test_mistral_window_and_phi3_window() -> None:
    assert attention_of(build(model_type="mistral", sliding_window=4096), 0).window == 4096
    assert attention_of(build(model_type="phi3", sliding_window=None), 0).window is None


def test_qwen_moe_sparse_step_and_dense_layers() -> None:
    model = build(
        model_type="qwen3_moe",
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=512,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
    )
    moe = [any(isinstance(op, Experts) for op in model.blocks[i].operators) for i in model.layers]
    assert moe == [False, True, False, False]


def test_deepseek_sparse_attention_keeps_the_whole_cache() -> None:
    config = {
        "model_type": "deepseek_v32",
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "vocab_size": 1000,
        "q_lora_rank": 128,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "first_k_dense_replace": 1,
        "index_topk": 256,
    }
    attention = attention_of(model_from_hf_config(config, "sparse"), 1)
    assert (attention.sparse_keys, attention.window, attention.kv_latent_dim) == (256, None, 80)


def test_hybrid_keeps_its_order() -> None:
    model = build(
        model_type="jamba",
        num_hidden_layers=8,
        attn_layer_period=8,
        attn_layer_offset=4,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_dt_rank="auto",
    )
    attends = [any(isinstance(op, Attention) for op in model.blocks[i].operators) for i in model.layers]
    scans = [any(isinstance(op, StateSpace) for op in model.blocks[i].operators) for i in model.layers]
    assert attends == [i == 4 for i in range(8)]
    assert scans == [i != 4 for i in range(8)]


def test_bert_heads_follow_the_architecture() -> None:
    config = {
        "model_type": "bert",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
    }
    masked = model_from_hf_config(config | {"architectures": ["BertForMaskedLM"]}, "bert")
    both = model_from_hf_config(config | {"architectures": ["BertForPreTraining"]}, "bert")
    # Sizes of the release's own classes: 109,514,298 with the word head, 110,106,428 with all heads.
    assert masked.num_params == 109_514_298
    assert both.num_params == 110_106_428


def test_t5_has_cross_attention_and_one_table_of_positions_per_side() -> None:
    config = {
        "model_type": "t5",
        "d_model": 512,
        "d_ff": 2048,
        "d_kv": 64,
        "num_layers": 6,
        "num_heads": 8,
        "vocab_size": 32128,
    }
    model = model_from_hf_config(config, "t5")
    assert (model.kind, model.num_layers, model.encoder_layers) == ("encoder-decoder", 12, 6)
    crosses = [any(getattr(op, "cross", False) for op in model.blocks[i].operators) for i in model.layers]
    assert crosses == [False] * 6 + [True] * 6
    positions = sum(attention_of(model, i).num_params for i in range(12))
    assert positions == 2 * 32 * 8


def test_every_residual_half_ends_in_one_row_split_matmul() -> None:
    for block in build().blocks:
        rows = [op for op in block.operators if isinstance(op, Matmul) and op.split is Split.ROW]
        assert len(rows) == block.num_reductions == 2
