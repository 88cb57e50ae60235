"""MindSpeed on Ascend: Megatron's arguments, and its own for what it does in another way."""

from hardware.errors import OutOfDomainError
from planner.emit.emission import Caveat, Emission
from planner.emit.megatron_arguments import model_arguments, strategy_arguments
from planner.emit.megatron_lm import run_arguments
from planner.emit.program import Program, program_emission
from planner.emit.shell import flag
from planner.emit.training_launch import TrainingLaunch

__all__ = ["emit"]

_CUDA_ONLY = ("--tp-comm-overlap", "--use-megatron-fsdp", "--fp8-", "--fp4-", "--ckpt-format fsdp_dtensor")


def emit(launch: TrainingLaunch) -> Emission:
    """Return the files of a MindSpeed job.

    Raises
    ------
    OutOfDomainError
        for devices other than Ascend, and for sharding that it does not have.
    """
    s = launch.strategy
    if launch.vendor != "huawei":
        message = (
            f"MindSpeed runs on Ascend devices, the plan is for {launch.device}; emit it for megatron-lm"
        )
        raise OutOfDomainError(message)
    if s.zero >= 2:
        message = f"strategy.zero {s.zero}: MindSpeed shards the optimizer only here; plan with zero 0 or 1"
        raise OutOfDomainError(message)
    model, model_caveats = model_arguments(launch.shape, launch.seq_len)
    strategy, strategy_caveats = strategy_arguments(launch)
    kept = [line for line in strategy if not line.startswith((*_CUDA_ONLY, "--cp-comm-type"))]
    if s.cp > 1:
        kept.append("--context-parallel-algo megatron_cp_algo")
    if s.overlap_tp and s.tp > 1:
        kept.append("--use-ascend-mc2")
    caveats = []
    if launch.precision not in ("bf16", "fp16", "fp32"):
        caveats.append(Caveat(feature=f"precision {launch.precision}", instead="matrix products run in bf16"))
    buffers = ";".join(f"{name}:200" for name, size in (("tp", s.tp), ("pp", s.pp), ("dp", s.dp)) if size > 1)
    program = Program(
        entry='"${MEGATRON_LM:?set MEGATRON_LM to Megatron-LM with MindSpeed patched in}/pretrain_gpt.py"',
        arguments=(
            *model,
            *kept,
            "--use-mcore-models",
            *(("--use-flash-attn",) if launch.fused_attention else ()),
            "--transformer-impl local",
            *((flag("--hccl-group-buffer", buffers),) if buffers else ()),
        ),
        run_arguments=run_arguments(launch),
        environment={
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
            "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
            "TASK_QUEUE_ENABLE": "2",
        },
        caveats=(*model_caveats, *strategy_caveats, *caveats),
    )
    return program_emission(launch, program)
