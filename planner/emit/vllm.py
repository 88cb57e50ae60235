"""vLLM: `vllm serve` for every pool; NIXL connectors where prefill and decode are split."""

import json
from typing import Any

from costmodels.serving.config import Quant
from planner.emit.emission import Caveat, Emission
from planner.emit.serving_files import EngineCommand, serving_emission
from planner.emit.serving_launch import DEVICES_PER_HOST, Pool, ServingLaunch
from planner.emit.shell import flag

__all__ = ["emit", "engine_arguments", "option_words", "vllm_command"]

_ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_FROM_CHECKPOINT = {Quant.FP8_BLOCK, Quant.INT8, Quant.INT4, Quant.NVFP4, Quant.MXFP4}
"""Weights in these formats come quantised in the checkpoint; the engine finds out by itself."""


def emit(launch: ServingLaunch) -> Emission:
    """Return the files of a vLLM fleet."""
    return serving_emission(launch, lambda pool: vllm_command(launch, pool), engine="vllm", router="vllm")


def vllm_command(launch: ServingLaunch, pool: Pool) -> EngineCommand:
    """Return how one instance of the pool starts."""
    values, caveats = engine_arguments(launch, pool)
    environment = {}
    lines = [flag(*option_words(name, value)) for name, value in values.items()]
    if pool.role in _ROLES:
        transfer = {"kv_connector": "NixlConnector", "kv_role": _ROLES[pool.role]}
        lines.append(flag("--kv-transfer-config", json.dumps(transfer)))
        environment["VLLM_NIXL_SIDE_CHANNEL_HOST"] = "$(hostname -i | cut -d' ' -f1)"
        environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] = "5600"
    return EngineCommand(
        words='vllm serve "$MODEL"',
        arguments=tuple(lines),
        environment=environment,
        multi_host=_several_machines(pool),
        follower_arguments="--headless",
        caveats=caveats,
    )


def _several_machines(pool: Pool) -> tuple[str, ...]:
    """Return how the machines of one instance find each other: by attention group where groups are whole."""
    c = pool.config
    if c.dp > 1 and c.tp * c.pp <= DEVICES_PER_HOST:
        local = DEVICES_PER_HOST // (c.tp * c.pp)
        return (
            flag("--data-parallel-size-local", local),
            '--data-parallel-address "$LEADER"',
            f'--data-parallel-start-rank "$((NODE_RANK * {local}))"',
        )
    return (
        flag("--nnodes", pool.num_hosts),
        '--node-rank "$NODE_RANK"',
        '--master-addr "$LEADER"',
    )


def option_words(name: str, value: Any) -> list[str]:
    """Return one option as words; a switch that is off has its own name."""
    if value is True:
        return [f"--{name}"]
    if value is False:
        return [f"--disable-{name.removeprefix('enable-')}"]
    return [f"--{name}", str(value)]


def engine_arguments(launch: ServingLaunch, pool: Pool) -> tuple[dict[str, Any], tuple[Caveat, ...]]:
    """Return the engine's options by name (True and False are switches), and what they cannot express."""
    c = pool.config
    values: dict[str, Any] = {"tensor-parallel-size": c.tp, "pipeline-parallel-size": c.pp}
    caveats = []
    if c.dp > 1:
        values["data-parallel-size"] = c.dp
    if c.ep > 1:
        values["enable-expert-parallel"] = True
        if c.ep != c.tp * c.dp:
            what = f"experts are spread over all {c.tp * c.dp} devices of a stage"
            caveats.append(Caveat(feature=f"{pool.name}: ep {c.ep}", instead=what))
    longest = launch.longest_tokens
    if not c.chunked:
        limit = min(longest or c.token_budget, c.token_budget)
        if longest is None or longest > c.token_budget:
            what = f"requests are limited to {limit} tokens, one iteration's budget"
            caveats.append(Caveat(feature=f"{pool.name}: prompts in one piece", instead=what))
        longest = limit
    if longest is not None:
        values["max-model-len"] = longest
    values["max-num-seqs"] = min(c.max_batch, c.token_budget)
    values["max-num-batched-tokens"] = c.token_budget
    values["enable-chunked-prefill"] = c.chunked
    values |= _formats(pool, caveats)
    if c.draft_tokens:
        draft = {"method": "mtp", "num_speculative_tokens": c.draft_tokens}
        values["speculative-config"] = json.dumps(draft)
    if c.num_adapters:
        values |= {"enable-lora": True, "max-loras": c.num_adapters, "max-lora-rank": _lora_rank(c.lora_rank)}
    return values, tuple(caveats)


def _lora_rank(rank: int) -> int:
    """Return the smallest rank that the engine sets memory aside for."""
    return next((r for r in _LORA_RANKS if r >= rank), rank)


def _formats(pool: Pool, caveats: list[Caveat]) -> dict[str, Any]:
    c = pool.config
    values: dict[str, Any] = {"dtype": "bfloat16"}
    if c.weights is Quant.FP8:
        values["quantization"] = "fp8"
    elif c.weights in _FROM_CHECKPOINT:
        what = "MODEL must name a checkpoint in that format"
        caveats.append(Caveat(feature=f"{pool.name}: weights {c.weights.label}", instead=what))
    if c.kv is not Quant.BF16:
        values["kv-cache-dtype"] = "fp8"
        if c.kv not in (Quant.FP8, Quant.FP8_BLOCK):
            caveats.append(Caveat(feature=f"{pool.name}: cache {c.kv.label}", instead="the cache is fp8"))
    return values
