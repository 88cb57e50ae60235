"""What the name of a Megatron test says where its row is silent: switches, old containers, known models.

Megatron-LM's functional tests put their switches into the test's name; the table of their memory figures
keeps that name as `path`. Only such names, and columns, are read here, never a measured value.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

from costmodels.run_table import RunRow
from hardware.errors import InputError

__all__ = ["Switches", "known_dimensions", "refuse_unknown_parts", "switches_of", "with_named_degrees"]

_HELD_BESIDES = (
    (r"grpo", "an inference engine and its key-value cache live beside the training state"),
    (r"llava|mimo|vlm", "a vision tower and its images are not in the row"),
    (r"hybrid|nemotron3|mamba", "the pattern of state-space and attention layers is not in the row"),
    (r"distill", "the teacher of the distillation is not in the row"),
)
_GROUPED = r"groupedGEMM|ddp_average_in_collective|gpt3_moe_|release|ep4_etp1|fsdp|z3"
"""Tests whose experts run as one grouped matmul."""


_EARLY_ITERATIONS = (11.0, 21.0)
"""Lengths of the oldest recordings; later ones log 49 to 100 iterations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """What a test's name adds to its row."""

    flash: bool
    """Attention keeps no scores."""
    logit_bytes: float
    """Megatron's cross entropy works in place (6); its fused form keeps the exponentials too (10), and in old
    containers an fp32 copy more (14)."""
    recompute: str
    uneven: bool
    """First and last stage have one layer fewer than an even split."""
    ends_are_layers: bool
    """Embedding and loss count as one layer each in the split."""
    long_groups: bool
    """Interleaving with groups of one micro-batch more than stages (tunable overlap)."""
    predicted_ahead: int
    """Layers and heads that predict further tokens (DeepSeek-V3 has one); they follow the last layer."""
    deferred_logits: int
    """Micro-batches whose head gradient waits."""
    optimizer_instances: int
    """Copies of the sharded optimizer."""
    grouped_experts: bool
    qk_norm: bool
    bias: bool
    rotary: bool
    dropout: bool


def refuse_unknown_parts(path: str) -> None:
    """Raise where the name says that the run held what its row cannot tell.

    Raises
    ------
    InputError
        with what is missing.
    """
    for pattern, why in _HELD_BESIDES:
        if re.search(pattern, path):
            raise InputError(why)


def _flash(row: RunRow, path: str) -> bool:
    """Whether attention keeps no scores.

    Where the row is blank: local layers and recordings in containers of old long-term-support releases kept
    them; the tests that load a checkpoint of another layout never did.
    """
    attention = row.text("attn")
    if attention:
        return attention in ("flash", "fused")
    if row.text("impl") == "local":
        return False
    old = re.search(r"lts_dgxa100_dracooci|lts_dgx_a100$", path) is not None
    blank = row.optional("nodes") is None
    early = old and ("dracooci" in path or blank)
    return not early or re.search(r"reshard|release", path) is not None


def _logit_bytes(row: RunRow, path: str) -> float:
    if "cross_entropy_loss_fusion" not in path:
        return 6.0
    early = "dracooci" in path or row.optional("n_iter_vals") in _EARLY_ITERATIONS
    return 14.0 if early else 10.0


def with_named_degrees(row: RunRow) -> RunRow:
    """Return the row with the tensor degree that its name spells out (``tp1pp4emp16``)."""
    named = re.search(r"_tp(\d+)pp\d+emp\d+", row.text("path"))
    if named is None or int(named.group(1)) == row.whole("tp"):
        return row
    return replace(row, values=row.values | {"tp": named.group(1)})


def is_t5(path: str) -> bool:
    """Return whether the run trains Megatron's encoder-decoder."""
    return "/t5" in path


def switches_of(row: RunRow) -> Switches:
    """Return what the row's `path` says about the run."""
    path = row.text("path").removesuffix(".json")
    experts = bool(row.optional("num_experts"))
    return Switches(
        flash=_flash(row, path),
        logit_bytes=_logit_bytes(row, path),
        recompute="none" if "selective_recompute_experimental" in path else row.text("recompute"),
        uneven="uneven_pipeline" in path,
        ends_are_layers="account_for_embedding_loss" in path,
        long_groups="tunable_overlap" in path,
        predicted_ahead=int(re.search(r"deepseekv3|_mtp_", path) is not None),
        deferred_logits=2 if "defer_embedding_wgrad" in path else 0,
        optimizer_instances=2 if "multi_dist_optimizer_instances" in path else 1,
        grouped_experts=experts and re.search(_GROUPED, path) is not None,
        qk_norm="qk_layernorm" in path,
        bias="disable_bias_linear" not in path,
        rotary="rope" in path,
        dropout="ep4_etp1" not in path,
    )


def known_dimensions(path: str) -> dict[str, Any]:
    """Return dimensions of published models that a release test trains and its row leaves blank."""
    if "15b_8t" in path:
        return {"vocab": 256_000, "tied": False}
    if "mixtral_8x" in path:
        return {"vocab": 32_000, "tied": False, "gated": True, "kv_heads": 8}
    if is_t5(path):
        return {"vocab": 29_096, "layers": 24 if "11b" in path else 12, "seq": 512}
    if "bert" in path:
        return {"vocab": 30_522}
    if "deepseekv3" in path:
        return {"vocab": 129_280, "tied": False, "gated": True}
    if "deepseek" in path:
        return {"tied": False, "gated": True}
    return {}
