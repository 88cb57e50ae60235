"""TensorRT-LLM: `trtllm-serve` with one option file per pool."""

from dataclasses import replace
from typing import Any

import yaml

from costmodels.serving.config import Quant
from planner.emit.emission import Caveat, Emission, header
from planner.emit.serving_files import EngineCommand, serving_emission
from planner.emit.serving_launch import DEVICES_PER_HOST, Pool, ServingLaunch
from planner.emit.shell import flag

__all__ = ["emit", "engine_options", "trtllm_command"]


def emit(launch: ServingLaunch) -> Emission:
    """Return the files of a TensorRT-LLM fleet."""
    emission = serving_emission(launch, lambda pool: trtllm_command(launch, pool), engine="trtllm")
    if not launch.is_split:
        return emission
    files = {k: v for k, v in emission.files.items() if k not in ("router.py", "router.json")}
    files["disaggregated.yaml"] = header(launch.origin) + yaml.safe_dump(
        _disaggregated(launch), sort_keys=False
    )
    what = "its server spreads requests over all prefill and all decode instances alike"
    caveat = Caveat(feature="routing by request size", instead=what)
    return replace(emission, files=files, caveats=(*emission.caveats, caveat))


def _disaggregated(launch: ServingLaunch) -> dict[str, Any]:
    def servers(role: str) -> dict[str, Any]:
        pools = launch.role_pools(role)
        urls = [f"{p.name}-{i}:{p.first_port + i}" for p in pools for i in range(p.count)]
        return {"num_instances": len(urls), "urls": urls}

    return {
        "hostname": "0.0.0.0",
        "port": 8080,
        "backend": "pytorch",
        "context_servers": servers("prefill"),
        "generation_servers": servers("decode"),
    }


def trtllm_command(launch: ServingLaunch, pool: Pool) -> EngineCommand:
    """Return how one instance of the pool starts."""
    options, caveats = engine_options(launch, pool)
    name = f"{pool.name}.yaml"
    mpi = pool.num_hosts > 1
    return EngineCommand(
        words='trtllm-llmapi-launch trtllm-serve "$MODEL"' if mpi else 'trtllm-serve "$MODEL"',
        arguments=("--host 0.0.0.0", "--backend pytorch", flag("--config", name)),
        files={name: header(launch.origin) + yaml.safe_dump(options, sort_keys=False)},
        multi_host=(),
        caveats=caveats,
    )


def engine_options(launch: ServingLaunch, pool: Pool) -> tuple[dict[str, Any], tuple[Caveat, ...]]:
    """Return the option file and what it cannot express."""
    c = pool.config
    caveats = []
    stage = c.tp * c.dp
    options: dict[str, Any] = {
        "tensor_parallel_size": stage,
        "pipeline_parallel_size": c.pp,
        "moe_expert_parallel_size": c.ep,
        "moe_tensor_parallel_size": stage // c.ep,
        "gpus_per_node": DEVICES_PER_HOST,
        "enable_attention_dp": c.dp > 1,
        "max_batch_size": c.max_batch,
        "max_num_tokens": c.token_budget,
        "enable_chunked_prefill": c.chunked,
        "kv_cache_config": {
            "free_gpu_memory_fraction": 0.9,
            "dtype": "auto" if c.kv is Quant.BF16 else "fp8",
            "enable_block_reuse": True,
        },
        "cuda_graph_config": {"enable_padding": True},
    }
    if c.ep == 1:
        del options["moe_expert_parallel_size"], options["moe_tensor_parallel_size"]
    if c.dp > 1 and c.tp > 1:
        what = f"attention runs data-parallel over all {stage} devices"
        caveats.append(Caveat(feature=f"{pool.name}: attention tp {c.tp} x dp {c.dp}", instead=what))
    if launch.longest_tokens is not None:
        options["max_seq_len"] = launch.longest_tokens
    if c.weights is not Quant.BF16:
        what = "MODEL must name a checkpoint in that format"
        caveats.append(Caveat(feature=f"{pool.name}: weights {c.weights.label}", instead=what))
    if c.draft_tokens:
        key = "max_draft_len" if launch.origin.version >= "1.4" else "num_nextn_predict_layers"
        options["speculative_config"] = {"decoding_type": "MTP", key: c.draft_tokens}
    if c.num_adapters:
        what = "give lora_config with the adapters' folders in the options file"
        caveats.append(Caveat(feature=f"{pool.name}: {c.num_adapters} adapters", instead=what))
    if pool.role in ("prefill", "decode"):
        options["cache_transceiver_config"] = {"backend": "NIXL"}
        options |= {"disable_overlap_scheduler": True} if pool.role == "prefill" else {}
    return options, tuple(caveats)
