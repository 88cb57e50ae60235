"""Inference engines as software stacks: what each adds to the kernels it starts, and how it batches.

The numbers are fitted: one JSON file for all engines, with what they were fitted from and the held-out error.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

from costmodels.serving.config import Quant
from hardware.device import Device
from hardware.errors import UnknownNameError

__all__ = ["EngineStack", "KernelScales", "engine_names", "expert_format", "find_engine", "generation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelScales:
    """Measured over kernel time, by part of an iteration."""

    gemm: float
    attention: float
    experts: float
    vector: float
    comm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStack:
    """One inference engine of one era."""

    name: str
    """vllm, sglang, trtllm, mindie."""
    host_s: float
    """Per iteration: scheduling, input preparation and sampling that the device waits for. Launches of an
    iteration with prompts, which runs outside captured graphs, stay ahead of its longer kernels."""
    host_per_seq_s: float
    """The same per decoding request."""
    admission_s: float
    """From arrival to the first iteration that may hold the prompt, and from token to answer."""
    decode: KernelScales
    """Of iterations that only decode."""
    prefill: KernelScales
    """Of iterations that only hold prompt tokens; mixed ones lie between, by their share of tokens."""
    expert_formats: Mapping[str, tuple[float, float]]
    """Further factors of routed experts, decode and prefill, by the key of `expert_format`."""
    routing_skew: float
    """Power law of expert popularity: requests of one kind prefer the same experts. Zero where the engine
    keeps copies of popular ones."""
    mixed_attention_factor: float
    """Attention of an iteration that holds prompts and decoding requests, over the sum of both alone."""
    memory_frac: float
    """Of device memory that the engine may fill."""
    reserve_bytes: float
    """Held by the runtime inside that share."""
    block_tokens: int
    """Tokens per KV-cache block."""
    token_budget: int
    """Default tokens of one iteration."""
    max_batch: int
    """Default requests decoding at once."""
    chunked: bool
    """Default: prompts are cut to share iterations with decoding."""


@cache
def _stacks() -> dict[str, EngineStack]:
    text = (files("costmodels") / "data" / "coefficients" / "serving" / "engines.json").read_text("utf-8")
    return {name: _engine(name, values) for name, values in json.loads(text)["engines"].items()}


def _engine(name: str, values: Mapping[str, Any]) -> EngineStack:
    known = {f.name for f in fields(EngineStack)} - {"decode", "prefill", "expert_formats"}
    return EngineStack(
        name=name,
        decode=KernelScales(**values["decode"]),
        prefill=KernelScales(**values["prefill"]),
        expert_formats={k: (v[0], v[1]) for k, v in values["expert_formats"].items()},
        **{k: v for k, v in values.items() if k in known},
    )


def expert_format(device: Device, quant: Quant) -> str:
    """Return the key of a routed layer's kernels: the device's generation and the weights' format."""
    return f"{generation(device)},{quant.label}"


def generation(device: Device) -> str:
    """Return what devices of one generation share: the vendor and the narrowest matrix format."""
    narrowest = next((n for n in ("fp4", "fp8") if getattr(device, f"{n}_flops_per_s")), "bf16")
    return f"{device.vendor},{narrowest}"


_ALIASES = {"tensorrt-llm": "trtllm", "trt-llm": "trtllm", "mind-ie": "mindie"}


def engine_names() -> tuple[str, ...]:
    """Return the names of the engines that are known."""
    return tuple(sorted(_stacks()))


def find_engine(name: str) -> EngineStack:
    """Return the engine called `name`.

    Raises
    ------
    UnknownNameError
        if no engine has that name.
    """
    key = _ALIASES.get(name.lower(), name.lower())
    if key not in _stacks():
        raise UnknownNameError("serving engine", name, engine_names())
    return _stacks()[key]
