"""Megatron-Bridge (NeMo): overrides of a recipe's configuration, in Hydra's form."""

from costmodels.strategy import Recompute
from planner.emit.emission import Caveat, Emission
from planner.emit.megatron_arguments import pipeline_layout
from planner.emit.megatron_lm import megatron_environment
from planner.emit.program import Program, program_emission
from planner.emit.training_launch import TrainingLaunch

__all__ = ["emit", "overrides"]

_PRECISION = {
    "bf16": "bf16_mixed",
    "fp16": "16-mixed",
    "fp8": "bf16_with_fp8_delayed_scaling_mixed",
    "mxfp8": "bf16_with_mxfp8_mixed",
    "fp8-block": "bf16_with_fp8_subchannel_scaling_mixed",
    "nvfp4": "bf16_with_nvfp4_mixed",
}


def emit(launch: TrainingLaunch) -> Emission:
    """Return the files of a Megatron-Bridge job: a recipe of yours, overridden by the plan."""
    environment, unset = megatron_environment(launch)
    program = Program(
        entry='"${RECIPE:?set RECIPE to your Megatron-Bridge training script, which takes Hydra overrides}"',
        arguments=overrides(launch),
        run_arguments=("train.train_iters=100", "logger.log_interval=1"),
        environment=environment,
        unset=unset,
        caveats=_caveats(launch),
    )
    return program_emission(launch, program)


def overrides(launch: TrainingLaunch) -> tuple[str, ...]:
    """Return every decision as ``section.key=value``."""
    s = launch.strategy
    values: dict[str, object] = {
        "model.seq_length": launch.seq_len,
        "dataset.sequence_length": launch.seq_len,
        "model.tensor_model_parallel_size": s.tp,
        "model.pipeline_model_parallel_size": s.pp,
        "model.context_parallel_size": s.cp,
        "model.sequence_parallel": s.sequence_parallel,
        "train.micro_batch_size": s.micro_batch,
        "train.global_batch_size": launch.global_batch,
        "ddp.use_distributed_optimizer": s.zero >= 1,
        "ddp.overlap_grad_reduce": s.overlap_dp and s.dp * s.cp > 1,
        "ddp.overlap_param_gather": s.overlap_dp and s.dp * s.cp > 1 and s.zero >= 1,
        "dist.use_tp_pp_dp_mapping": launch.rank_order == "tp-cp-ep-pp-dp",
    }
    if launch.shape.num_experts:
        values["model.expert_model_parallel_size"] = s.ep
        values["model.expert_tensor_parallel_size"] = s.etp
    if s.zero >= 2:
        values["dist.use_megatron_fsdp"] = True
        values["checkpoint.ckpt_format"] = "fsdp_dtensor"
        sharding = "optim_grads" if s.zero == 2 else "optim_grads_params"
        values["ddp.data_parallel_sharding_strategy"] = sharding
    if s.pp * s.vpp > 1 and not launch.is_even:
        values["model.pipeline_model_parallel_layout"] = f"'{pipeline_layout(launch.stage_layers)}'"
    elif s.vpp > 1:
        values["model.virtual_pipeline_model_parallel_size"] = s.vpp
    if launch.precision in _PRECISION:
        values["mixed_precision"] = _PRECISION[launch.precision]
    if s.overlap_tp and s.tp > 1:
        values["model.tp_comm_overlap"] = True
    values |= _recompute(launch)
    return tuple(f'"{key}={_text(value)}"' for key, value in values.items())


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _recompute(launch: TrainingLaunch) -> dict[str, object]:
    s = launch.strategy
    if s.recompute is Recompute.NONE:
        return {}
    if s.recompute is Recompute.SELECTIVE:
        return {"model.recompute_granularity": "selective", "model.recompute_modules": "[core_attn]"}
    layers = -(-s.recompute_layers // s.vpp) or 1
    method = "block" if s.recompute_layers else "uniform"
    return {
        "model.recompute_granularity": "full",
        "model.recompute_method": method,
        "model.recompute_num_layers": layers,
    }


def _caveats(launch: TrainingLaunch) -> tuple[Caveat, ...]:
    s = launch.strategy
    found = []
    if launch.precision == "fp32":
        found.append(Caveat(feature="precision fp32", instead="the recipe's own precision stays"))
    if s.overlap_tp and s.tp > 1:
        what = "model.tp_comm_overlap is set; a recipe with a section comm_overlap decides it there"
        found.append(Caveat(feature="strategy.overlap_tp", instead=what))
    if s.shard_group not in (0, s.dp * s.cp):
        found.append(
            Caveat(feature=f"strategy.shard_group {s.shard_group}", instead="shards spread over all")
        )
    if s.recompute is Recompute.FULL and s.recompute_layers % s.vpp:
        what = f"{-(-s.recompute_layers // s.vpp)} layers of each of {s.vpp} chunks"
        found.append(Caveat(feature=f"strategy.recompute_layers {s.recompute_layers}", instead=what))
    return tuple(found)
