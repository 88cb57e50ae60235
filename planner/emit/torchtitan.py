"""torchtitan 0.3: its module and configuration by name, every planned degree as an override."""

from costmodels.strategy import Recompute
from hardware.errors import OutOfDomainError
from planner.emit.emission import Caveat, Emission
from planner.emit.program import Program, program_emission
from planner.emit.shell import flag
from planner.emit.training_launch import TrainingLaunch

__all__ = ["emit"]

_MODULES: tuple[tuple[str, str, str], ...] = (
    ("llama-3.1-8b", "llama3", "llama3_8b"),
    ("llama-3-8b", "llama3", "llama3_8b"),
    ("llama-3.1-70b", "llama3", "llama3_70b"),
    ("llama-3-70b", "llama3", "llama3_70b"),
    ("llama-3.3-70b", "llama3", "llama3_70b"),
    ("llama-3.1-405b", "llama3", "llama3_405b"),
    ("deepseek-v3", "deepseek_v3", "deepseek_v3_671b"),
    ("qwen3-0.6b", "qwen3", "qwen3_0_6b"),
    ("qwen3-1.7b", "qwen3", "qwen3_1_7b"),
    ("qwen3-14b", "qwen3", "qwen3_14b"),
    ("qwen3-32b", "qwen3", "qwen3_32b"),
    ("qwen3-30b-a3b", "qwen3", "qwen3_30b_a3b"),
    ("gpt-oss-20b", "gpt_oss", "gpt_oss_20b"),
    ("gpt-oss-120b", "gpt_oss", "gpt_oss_120b"),
)
"""Catalogue name, torchtitan module, torchtitan configuration."""


def emit(launch: TrainingLaunch) -> Emission:
    """Return the files of a torchtitan job.

    Raises
    ------
    OutOfDomainError
        if torchtitan has no configuration for the model, or the plan needs expert tensor parallelism.
    """
    s = launch.strategy
    found = next((row for row in _MODULES if row[0] == launch.shape.name), None)
    if found is None:
        known = ", ".join(row[0] for row in _MODULES)
        message = f"no torchtitan configuration is known for model {launch.shape.name}; known for: {known}"
        raise OutOfDomainError(message)
    if s.etp > 1 and s.ep > 1:
        message = f"torchtitan has no expert tensor parallelism (etp {s.etp}); emit this plan for megatron-lm"
        raise OutOfDomainError(message)
    program = Program(
        entry="-m torchtitan.train",
        arguments=(
            flag("--module", found[1]),
            flag("--config", found[2]),
            *_degrees(launch),
            *_pipeline(launch),
            *_training(launch),
            _recompute(launch),
        ),
        run_arguments=("--training.steps 100",),
        caveats=_caveats(launch),
    )
    return program_emission(launch, program)


def _degrees(launch: TrainingLaunch) -> list[str]:
    s = launch.strategy
    shards = (s.shard_group or s.dp * s.cp) // s.cp if s.zero else 1
    lines = [
        flag("--parallelism.data_parallel_replicate_degree", s.dp // max(shards, 1)),
        flag("--parallelism.data_parallel_shard_degree", max(shards, 1)),
        flag("--parallelism.fsdp_reshard_after_forward", "always" if s.zero == 3 else "never"),
        flag("--parallelism.tensor_parallel_degree", s.tp),
        flag("--parallelism.context_parallel_degree", s.cp),
        flag("--parallelism.pipeline_parallel_degree", s.pp),
        flag("--parallelism.expert_parallel_degree", s.ep),
    ]
    if s.tp > 1 and not s.sequence_parallel:
        lines.append("--parallelism.no-enable_sequence_parallel")
    if s.pp > 1 or s.ep > 1:
        lines.append("--training.disable_cuda_graphs")
    if s.overlap_tp and s.tp > 1:
        lines += ["--compile.enable", "--compile.enable_async_tensor_parallel"]
    return lines


def _pipeline(launch: TrainingLaunch) -> list[str]:
    s = launch.strategy
    if s.pp == 1:
        return []
    schedule = "Interleaved1F1B" if s.vpp > 1 else "1F1B"
    lines = [
        flag("--parallelism.pipeline_parallel_schedule", schedule),
        flag("--parallelism.pipeline_parallel_microbatch_size", s.micro_batch),
        "--parallelism.pipeline_parallel_first_stage_less_layers 0",
        "--parallelism.pipeline_parallel_last_stage_less_layers 0",
    ]
    if launch.is_even:
        lines.append(flag("--parallelism.pipeline_parallel_layers_per_stage", launch.stage_layers[0]))
        return lines
    # Uneven stages are named module by module: the option takes one word per model part.
    # Quoted, since commas in an array look like a mistake to shellcheck.
    parts = " ".join(f"'{part}'" for part in _module_names(launch.stage_layers))
    lines.append(f"--parallelism.module_fqns_per_model_part {parts}")
    return lines


def _module_names(stage_layers: tuple[int, ...]) -> list[str]:
    parts, first = [], 0
    for number, layers in enumerate(stage_layers):
        names = [f"layers.{i}" for i in range(first, first + layers)]
        names = ["tok_embeddings", *names] if number == 0 else names
        names = [*names, "norm", "lm_head"] if number == len(stage_layers) - 1 else names
        parts.append(",".join(names))
        first += layers
    return parts


def _training(launch: TrainingLaunch) -> list[str]:
    s = launch.strategy
    # Under a pipeline the local batch is what one replica feeds through it at once.
    local = s.micro_batch * (launch.num_micro_batches if s.pp > 1 else 1)
    dtype = {"fp32": "float32"}.get(launch.precision, "bfloat16")
    return [
        flag("--training.local_batch_size", local),
        flag("--training.global_batch_size", launch.global_batch),
        flag("--training.seq_len", launch.seq_len),
        flag("--training.mixed_precision_param", dtype),
    ]


def _recompute(launch: TrainingLaunch) -> str:
    """Return the sub-command, which has to come after every option."""
    mode = {Recompute.NONE: "none", Recompute.SELECTIVE: "selective", Recompute.FULL: "full"}
    return f"activation-checkpoint:{mode[launch.strategy.recompute]}"


def _caveats(launch: TrainingLaunch) -> tuple[Caveat, ...]:
    s = launch.strategy
    found = []
    if launch.precision not in ("bf16", "fp32"):
        what = "bfloat16; low precisions are converters of a model registry in Python"
        found.append(Caveat(feature=f"precision {launch.precision}", instead=what))
    if s.recompute is Recompute.FULL and s.recompute_layers:
        what = "every layer is recomputed"
        found.append(Caveat(feature=f"strategy.recompute_layers {s.recompute_layers}", instead=what))
    if s.zero == 1:
        what = "weights and gradients are sharded too (not resharded after forward)"
        found.append(Caveat(feature="strategy.zero 1", instead=what))
    return tuple(found)
