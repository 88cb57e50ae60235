"""What a probe is told besides the folder: planned devices, stages, command lines, the model's shape."""

import re
from typing import Any

from costmodels.models import hf_config
from hardware.catalog import find_device
from planner.emit.accelerator_names import compute_capability
from planner.emit.model_shape import ModelShape
from planner.emit.serving_launch import DEVICES_PER_HOST
from planner.emit.verify.emitted import Emitted
from planner.emit.verify.engine_lines import engine_lines, engine_of
from planner.emit.verify.flag_table import flag_table
from planner.emit.verify.training_check import launch_of

__all__ = ["probe_input"]

_H100 = (9, 0)
"""Stands for devices without CUDA, whose emissions take the same options."""
_OF_THE_PLATFORM = {"dynamo": ("--model", "--model-path", "--disaggregation-mode")}
"""Options that the platform reads itself, each with a value."""


def probe_input(emitted: Emitted) -> dict[str, Any]:
    """Return what the probes of `emitted` are told."""
    if emitted.plan.kind == "train":
        launch = launch_of(emitted)
        own = flag_table("mindspeed").own if emitted.target == "mindspeed" else {}
        return _device(launch.device, launch.device_memory_bytes) | {
            "stage_layers": list(launch.stage_layers),
            "provider": _provider(launch.shape),
            "without": {name: form != "switch" for name, form in own.items()},
        }
    catalogs = tuple(str(c) for c in emitted.plan.request.get("catalog", ()))
    memory = {e.device: find_device(e.device, catalogs=catalogs).memory_bytes for e in emitted.best.mix}
    lines = engine_lines(emitted)
    return {
        "lines": {line.shown: _engine_words(emitted, line.words) for line in lines},
        "devices": {line.shown: _device(line.device, memory[line.device]) for line in lines},
        "files": sorted({line.file for line in lines}),
        "model": hf_config(str(emitted.plan.request["model"])),
        "devices_per_host": DEVICES_PER_HOST,
    }


def _provider(shape: ModelShape) -> dict[str, Any]:
    """Return the fields of a Megatron-Bridge model provider."""
    fields: dict[str, Any] = {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden,
        "ffn_hidden_size": shape.ffn_hidden,
        "num_attention_heads": shape.num_heads,
        "num_query_groups": shape.num_kv_heads,
        "vocab_size": shape.vocab,
    }
    if shape.num_experts:
        fields |= {
            "num_moe_experts": shape.num_experts,
            "moe_router_topk": shape.top_k,
            "moe_ffn_hidden_size": shape.expert_ffn_hidden,
        }
    return fields


def _device(name: str, memory_bytes: float) -> dict[str, Any]:
    return {"capability": list(compute_capability(name) or _H100), "memory_bytes": memory_bytes}


def _engine_words(emitted: Emitted, words: tuple[str, ...]) -> list[str]:
    """Return the engine's own words as its first machine reads them."""
    skipped: tuple[str, ...] = _OF_THE_PLATFORM.get(emitted.target, ())
    if emitted.target == "dynamo" and engine_of(emitted) == "sglang":
        skipped = ("--model", "--model-path")
    kept: list[str] = []
    position = 0
    while position < len(words):
        if words[position] in skipped:
            position += 2
            continue
        text = re.sub(r"\$\(\(NODE_RANK \* \d+\)\)|\$NODE_RANK", "0", words[position])
        kept.append(text.replace("$LEADER", "127.0.0.1"))
        position += 1
    return kept
