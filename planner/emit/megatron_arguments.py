"""Megatron-LM arguments of a model and a strategy; shared by Megatron-LM and its Ascend adapter."""

from costmodels.strategy import Recompute
from planner.emit.emission import Caveat
from planner.emit.model_shape import ModelShape
from planner.emit.shell import flag
from planner.emit.training_launch import TrainingLaunch

__all__ = ["model_arguments", "pipeline_layout", "strategy_arguments"]

_PRECISIONS: dict[str, tuple[str, ...]] = {
    "bf16": ("--bf16",),
    "fp16": ("--fp16",),
    "fp32": (),
    "fp8": ("--bf16", "--fp8-format hybrid", "--fp8-recipe delayed"),
    "mxfp8": ("--bf16", "--fp8-format e4m3", "--fp8-recipe mxfp8"),
    "fp8-block": ("--bf16", "--fp8-format e4m3", "--fp8-recipe blockwise"),
    "nvfp4": ("--bf16", "--fp4-format e2m1", "--fp4-recipe nvfp4"),
}


def model_arguments(shape: ModelShape, seq_len: int) -> tuple[tuple[str, ...], tuple[Caveat, ...]]:
    """Return the arguments that describe the model, and what of it they cannot say."""
    lines = [
        flag("--num-layers", shape.num_layers),
        flag("--hidden-size", shape.hidden),
        flag("--ffn-hidden-size", shape.ffn_hidden),
        flag("--num-attention-heads", shape.num_heads),
        flag("--seq-length", seq_len),
        flag("--max-position-embeddings", max(seq_len, shape.max_seq_len or 0)),
    ]
    if shape.latent is None:
        lines.append(flag("--kv-channels", shape.head_dim))
    if shape.latent is None and shape.num_kv_heads != shape.num_heads:
        lines += ["--group-query-attention", flag("--num-query-groups", shape.num_kv_heads)]
    lines.append(flag("--position-embedding-type", _positions(shape)))
    lines.append(flag("--normalization", "RMSNorm" if shape.rms else "LayerNorm"))
    lines += ["--swiglu"] if shape.gated else []
    lines += [] if shape.bias else ["--disable-bias-linear"]
    lines += ["--add-qkv-bias"] if shape.qkv_bias and not shape.bias else []
    lines += ["--qk-layernorm"] if shape.qk_norm or shape.latent is not None else []
    lines += [] if shape.tied_head else ["--untie-embeddings-and-output-weights"]
    lines += _latent(shape) + _experts(shape)
    caveats = []
    if shape.window is not None:
        what = "--window-size is left out, attention is full"
        caveats.append(Caveat(feature=f"attention window of {shape.window}", instead=what))
    return tuple(lines), tuple(caveats)


def _positions(shape: ModelShape) -> str:
    if shape.rotary:
        return "rope"
    return "learned_absolute" if shape.learned_positions else "none"


def _latent(shape: ModelShape) -> list[str]:
    latent = shape.latent
    if latent is None:
        return []
    lines = ["--multi-latent-attention"]
    lines += [flag("--q-lora-rank", latent.q_rank)] if latent.q_rank else []
    return [
        *lines,
        flag("--kv-lora-rank", latent.kv_rank),
        flag("--qk-head-dim", latent.nope_dim),
        flag("--qk-pos-emb-head-dim", latent.rope_dim),
        flag("--v-head-dim", latent.value_dim),
    ]


def _experts(shape: ModelShape) -> list[str]:
    if not shape.num_experts:
        return []
    lines = [
        flag("--num-experts", shape.num_experts),
        flag("--moe-router-topk", shape.top_k),
        flag("--moe-ffn-hidden-size", shape.expert_ffn_hidden),
        "--moe-grouped-gemm",
        flag("--moe-token-dispatcher-type", "alltoall"),
        flag("--moe-router-load-balancing-type", "seq_aux_loss" if shape.router_bias else "aux_loss"),
        flag("--moe-aux-loss-coeff", "1e-4" if shape.router_bias else "1e-2"),
    ]
    if shape.shared_ffn_hidden:
        lines.append(flag("--moe-shared-expert-intermediate-size", shape.shared_ffn_hidden))
    if shape.router_bias:
        lines += [flag("--moe-router-score-function", "sigmoid"), "--moe-router-enable-expert-bias"]
    if not all(shape.expert_layers):
        lines.append(
            flag("--moe-layer-freq", f"([{','.join('1' if e else '0' for e in shape.expert_layers)}])")
        )
    return lines


def pipeline_layout(stage_layers: tuple[int, ...]) -> str:
    """Return Megatron's layout text: E embedding, t layer, L loss, | between model chunks."""
    chunks = [f"t*{n}" if n > 1 else "t" * n for n in stage_layers]
    return "E" + "|".join(chunks) + "L"


def strategy_arguments(launch: TrainingLaunch) -> tuple[tuple[str, ...], tuple[Caveat, ...]]:
    """Return the arguments that realise the strategy, and what they cannot express."""
    s = launch.strategy
    lines = [flag("--tensor-model-parallel-size", s.tp), flag("--pipeline-model-parallel-size", s.pp)]
    lines += ["--sequence-parallel"] if s.sequence_parallel else []
    lines += [flag("--context-parallel-size", s.cp), "--cp-comm-type p2p"] if s.cp > 1 else []
    if launch.shape.num_experts:
        lines.append(flag("--expert-model-parallel-size", s.ep))
        lines.append(flag("--expert-tensor-parallel-size", s.etp))
    lines += _pipeline(launch)
    lines += [flag("--micro-batch-size", s.micro_batch), flag("--global-batch-size", launch.global_batch)]
    lines += _PRECISIONS[launch.precision]
    recompute, caveats = _recompute(launch)
    lines += recompute
    if s.vpp > 1 and s.pp == 2 and not s.overlap_pp:
        what = "an interleaved schedule of two stages always overlaps its sends"
        caveats = (*caveats, Caveat(feature="strategy.overlap_pp off", instead=what))
    lines += _data_parallel(launch)
    if s.overlap_tp and s.tp > 1:
        lines.append("--tp-comm-overlap")
    if launch.rank_order == "tp-cp-ep-pp-dp":
        lines.append("--use-tp-pp-dp-mapping")
    return tuple(lines), caveats


def _pipeline(launch: TrainingLaunch) -> list[str]:
    s = launch.strategy
    lines = []
    if s.pp * s.vpp > 1 and not launch.is_even:
        lines.append(flag("--pipeline-model-parallel-layout", pipeline_layout(launch.stage_layers)))
    elif s.vpp > 1:
        lines.append(flag("--num-layers-per-virtual-pipeline-stage", launch.stage_layers[0]))
    # With two stages an interleaved schedule would send and receive between the same ranks at once.
    if s.vpp > 1 and s.pp > 2 and not s.overlap_pp:
        lines.append("--no-overlap-p2p-communication")
    return lines


def _recompute(launch: TrainingLaunch) -> tuple[list[str], tuple[Caveat, ...]]:
    s = launch.strategy
    if s.recompute is Recompute.NONE:
        return [], ()
    if s.recompute is Recompute.SELECTIVE:
        return ["--recompute-granularity selective", "--recompute-modules core_attn"], ()
    if not s.recompute_layers:
        return ["--recompute-granularity full", "--recompute-method uniform", "--recompute-num-layers 1"], ()
    # The block method counts layers of one model chunk, not of the pipeline rank.
    per_chunk = -(-s.recompute_layers // s.vpp)
    lines = [
        "--recompute-granularity full",
        "--recompute-method block",
        flag("--recompute-num-layers", per_chunk),
    ]
    if per_chunk * s.vpp == s.recompute_layers:
        return lines, ()
    what = f"{per_chunk} layers of each of {s.vpp} chunks, {per_chunk * s.vpp} per rank"
    return lines, (Caveat(feature=f"strategy.recompute_layers {s.recompute_layers}", instead=what),)


def _data_parallel(launch: TrainingLaunch) -> list[str]:
    s = launch.strategy
    replicas = s.dp * s.cp
    instances = replicas // s.shard_group if s.shard_group and s.zero else 1
    lines = []
    if s.zero >= 2:
        sharding = "optim_grads" if s.zero == 2 else "optim_grads_params"
        lines = [
            "--use-megatron-fsdp",
            flag("--data-parallel-sharding-strategy", sharding),
            "--ckpt-format fsdp_dtensor",
            "--no-gradient-accumulation-fusion",
        ]
    if s.zero >= 1:
        lines.append("--use-distributed-optimizer")
    if instances > 1:
        lines.append(flag("--num-distributed-optimizer-instances", instances))
        lines += ["--outer-dp-sharding-strategy no_shard"] if s.zero >= 2 else []
    if s.overlap_dp and replicas > 1:
        lines.append("--overlap-grad-reduce")
        lines += ["--overlap-param-gather"] if s.zero >= 1 else []
    return lines
