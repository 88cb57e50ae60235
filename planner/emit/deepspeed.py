"""DeepSpeed: ds_config.json, its hostfile and launcher, and a small trainer that runs as emitted."""

import json
from typing import Any

from hardware.errors import OutOfDomainError
from planner.emit.emission import Caveat, Emission, header
from planner.emit.plain_training import (
    program_text,
    recompute_layers,
    require_degrees,
    require_dense,
    settings_text,
    shared_caveats,
)
from planner.emit.program import Program, program_emission
from planner.emit.shell import FIRST_LINES
from planner.emit.training_launch import TrainingLaunch

__all__ = ["deepspeed_config", "emit"]


def emit(launch: TrainingLaunch) -> Emission:
    """Return the files of a DeepSpeed job.

    Raises
    ------
    OutOfDomainError
        for combinations of degrees that DeepSpeed does not have.
    """
    s = launch.strategy
    require_degrees(launch, only=("tp", "pp", "cp", "ep"), elsewhere="megatron-lm")
    automatic = s.tp > 1 or s.cp > 1 or s.ep > 1
    if s.pp > 1 and automatic:
        message = (
            f"DeepSpeed's pipeline does not combine with automatic tensor, sequence or expert parallelism "
            f"(pp {s.pp}, tp {s.tp}, cp {s.cp}, ep {s.ep}); emit this plan for megatron-lm"
        )
        raise OutOfDomainError(message)
    if s.pp > 1 and s.zero > 1:
        message = f"DeepSpeed's pipeline takes zero 0 or 1, not {s.zero}; emit this plan for torchtitan"
        raise OutOfDomainError(message)
    if not automatic and not launch.shape.num_experts:
        require_dense(launch)
    needs_hf = automatic or bool(launch.shape.num_experts)
    hostfile = "".join(f"{host.name} slots={len(host.devices)}\n" for host in launch.hosts)
    program = Program(
        entry="train_deepspeed.py",
        arguments=("--settings settings.json",),
        run_arguments=("--steps 20",),
        environment={"OMP_NUM_THREADS": "1"},
        files={
            "ds_config.json": json.dumps(deepspeed_config(launch), indent=2) + "\n",
            "decoder.py": program_text(launch, "decoder.py"),
            "train_deepspeed.py": program_text(launch, "train_deepspeed.py"),
            "settings.json": settings_text(launch, needs_hf_model=needs_hf),
            "hostfile": hostfile,
            "launch_deepspeed.sh": _launcher(launch),
        },
        commands=frozenset({"launch_deepspeed.sh"}),
        caveats=(*shared_caveats(launch), *_caveats(launch)),
    )
    return program_emission(launch, program)


def _launcher(launch: TrainingLaunch) -> str:
    return (
        FIRST_LINES
        + header(launch.origin)
        + "# Starts the job with DeepSpeed's own launcher; the order of the hostfile is the order of ranks.\n"
        'set -euo pipefail\ncd "$(dirname "${BASH_SOURCE[0]}")"\n'
        "export NODE_RANK=0\n# shellcheck source=env.sh\nsource ./env.sh\n"
        "# shellcheck source=run_args.sh\nsource ./run_args.sh\n"
        f"exec deepspeed --hostfile hostfile --launcher pdsh --master_addr {launch.hosts[0].name} \\\n"
        '  --master_port "${MASTER_PORT:-29500}" \\\n'
        '  train_deepspeed.py --settings settings.json "${RUN_ARGS[@]}"\n'
    )


def deepspeed_config(launch: TrainingLaunch) -> dict[str, Any]:
    """Return ds_config.json."""
    s = launch.strategy
    config: dict[str, Any] = {
        "train_batch_size": launch.global_batch,
        "train_micro_batch_size_per_gpu": s.micro_batch,
        "gradient_accumulation_steps": launch.num_micro_batches,
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "betas": [0.9, 0.95], "weight_decay": 0.1}},
        "gradient_clipping": 1.0,
        "zero_optimization": _zero(launch),
    }
    if launch.precision == "fp16":
        config["fp16"] = {"enabled": True}
    elif launch.precision != "fp32":
        config["bf16"] = {"enabled": True}
    if s.tp > 1:
        config["tensor_parallel"] = {"autotp_size": s.tp}
    if s.cp > 1:
        config["sequence_parallel_size"] = s.cp
    if s.ep > 1:
        config["expert_parallel"] = {
            "enabled": True,
            "autoep_size": s.ep,
            "expert_tensor_parallel_size": s.etp,
        }
    if recompute_layers(launch):
        config["activation_checkpointing"] = {"partition_activations": False}
    return config


def _zero(launch: TrainingLaunch) -> dict[str, Any]:
    s = launch.strategy
    zero: dict[str, Any] = {"stage": s.zero, "overlap_comm": s.overlap_dp, "contiguous_gradients": True}
    if s.zero == 3 and s.shard_group and s.shard_group < s.dp * s.cp:
        zero["zero_hpz_partition_size"] = s.shard_group
    return zero


def _caveats(launch: TrainingLaunch) -> tuple[Caveat, ...]:
    s = launch.strategy
    found = []
    if s.shard_group not in (0, s.dp * s.cp):
        what = (
            "a second copy of the weights is kept per group (zero_hpz_partition_size); optimizer and "
            "gradients stay sharded over all replicas"
            if s.zero == 3
            else "shards spread over all replicas"
        )
        found.append(Caveat(feature=f"strategy.shard_group {s.shard_group}", instead=what))
    if s.overlap_tp and s.tp > 1:
        found.append(Caveat(feature="strategy.overlap_tp", instead="tensor-parallel collectives are exposed"))
    if s.sequence_parallel and s.tp > 1:
        what = "norms are computed whole on every tensor rank"
        found.append(Caveat(feature="strategy.sequence_parallel", instead=what))
    if s.pp > 1 and not launch.is_even:
        what = "layers are spread by number, DeepSpeed chooses where the remainder goes"
        found.append(
            Caveat(feature=f"stages of {', '.join(map(str, launch.stage_layers))} layers", instead=what)
        )
    return tuple(found)
