"""FSDP through Hugging Face Accelerate: its YAML, and a small trainer that runs as emitted."""

from typing import Any

import yaml

from planner.emit.emission import Caveat, Emission, header
from planner.emit.plain_training import (
    program_text,
    require_degrees,
    require_dense,
    settings_text,
    shared_caveats,
)
from planner.emit.program import Program, program_emission
from planner.emit.training_launch import TrainingLaunch

__all__ = ["accelerate_config", "emit"]


def emit(launch: TrainingLaunch) -> Emission:
    """Return the files of a training job through Accelerate.

    Raises
    ------
    OutOfDomainError
        for degrees other than dp, and for models that the trainer does not build.
    """
    require_degrees(launch, only=(), elsewhere="torchtitan or megatron-lm")
    require_dense(launch)
    config, caveats = accelerate_config(launch)
    program = Program(
        entry="train_accelerate.py",
        arguments=("--settings settings.json",),
        run_arguments=("--steps 20", "--lr 3e-4"),
        environment={"OMP_NUM_THREADS": "1"},
        files={
            "accelerate.yaml": header(launch.origin) + yaml.safe_dump(config, sort_keys=False),
            "decoder.py": program_text(launch, "decoder.py"),
            "train_accelerate.py": program_text(launch, "train_accelerate.py"),
            "settings.json": settings_text(launch),
        },
        caveats=(*shared_caveats(launch), *caveats),
        launcher="accelerate",
    )
    return program_emission(launch, program)


def accelerate_config(launch: TrainingLaunch) -> tuple[dict[str, Any], tuple[Caveat, ...]]:
    """Return accelerate.yaml and what of the strategy it cannot say."""
    s = launch.strategy
    precision = {"fp16": "fp16", "fp32": "no"}.get(launch.precision, "bf16")
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP" if s.zero >= 2 else "MULTI_GPU",
        "mixed_precision": precision,
        "num_machines": len(launch.hosts),
        "num_processes": s.world,
        "machine_rank": 0,
        "main_process_ip": launch.hosts[0].name,
        "main_process_port": 29500,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
    }
    if s.zero < 2:
        what = "DDP keeps the whole optimizer on every rank"
        return config, (Caveat(feature="strategy.zero 1", instead=what),) if s.zero else ()
    config["fsdp_config"] = {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": s.zero == 3,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_transformer_layer_cls_to_wrap": "Block",
        "fsdp_offload_params": False,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": False,
    }
    shards = s.shard_group or s.dp
    if shards != s.dp:
        config["parallelism_config"] = {
            "parallelism_config_dp_replicate_size": s.dp // shards,
            "parallelism_config_dp_shard_size": shards,
        }
    return config, ()
