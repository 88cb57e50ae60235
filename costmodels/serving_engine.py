"""Inference engines as software stacks: what each adds to the kernels it starts, and how it batches.

The numbers are fitted: one JSON file for all engines, with what they were fitted from and the held-out error.
"""

import json
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files

from hardware.errors import UnknownNameError

__all__ = ["EngineStack", "engine_names", "find_engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStack:
    """One inference engine of one era."""

    name: str
    """vllm, sglang, trtllm, mindie."""
    host_s: float
    """Per iteration: scheduling, input preparation and sampling that the device waits for."""
    host_per_seq_s: float
    """The same per decoding request."""
    prefill_host_s: float
    """Per iteration that holds prompt tokens, which runs outside captured graphs."""
    admission_s: float
    """From arrival to the first iteration that may hold the prompt, and from token to answer."""
    gemm_scale: float
    """Measured over kernel time of dense matmuls; likewise below."""
    attention_scale: float
    experts_scale: float
    vector_scale: float
    comm_scale: float
    prefill_scale: float
    """Measured over predicted time of the part of an iteration that prompt tokens add."""
    stream_tokens: float
    """Tokens that the server sends at once; the first answer waits for so many."""
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
    known = {f.name for f in fields(EngineStack)}
    return {
        name: EngineStack(name=name, **{k: v for k, v in values.items() if k in known})
        for name, values in json.loads(text)["engines"].items()
    }


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
