"""Megatron-LM: `pretrain_gpt.py` with every argument that the plan decides."""

import yaml

from planner.emit.emission import Caveat, Emission, header
from planner.emit.megatron_arguments import model_arguments, strategy_arguments
from planner.emit.network import crossing_groups
from planner.emit.program import Program, program_emission
from planner.emit.shell import flag
from planner.emit.training_launch import TrainingLaunch

__all__ = ["VERSIONS", "communicator_config", "emit", "megatron_environment"]

VERSIONS = ("0.20", "0.19")
"""Of megatron-core, newest first."""

_BLACKWELL = ("b200", "b300", "gb200", "gb300", "rtx-pro-6000")


def emit(launch: TrainingLaunch) -> Emission:
    """Return the files of a Megatron-LM job."""
    model, model_caveats = model_arguments(launch.shape, launch.seq_len)
    strategy, strategy_caveats = strategy_arguments(launch)
    files = {}
    communicators, notes = communicator_config(launch)
    if communicators:
        strategy = (*strategy, "--nccl-communicator-config-path communicators.yaml")
        files["communicators.yaml"] = header(launch.origin) + yaml.safe_dump(communicators)
    environment, unset = megatron_environment(launch)
    program = Program(
        entry='"${MEGATRON_LM:?set MEGATRON_LM to your checkout of Megatron-LM}/pretrain_gpt.py"',
        arguments=(*model, *strategy, "--use-mcore-models", "--distributed-timeout-minutes 30"),
        run_arguments=run_arguments(launch),
        environment=environment,
        unset=unset,
        files=files,
        caveats=(*model_caveats, *strategy_caveats, *notes),
    )
    return program_emission(launch, program)


def run_arguments(launch: TrainingLaunch) -> tuple[str, ...]:
    """Return what the plan does not decide, filled so that a first run on made-up data starts."""
    return (
        "--mock-data",
        "--tokenizer-type NullTokenizer",
        flag("--vocab-size", launch.shape.vocab - 1),
        "--train-iters 100",
        "--lr 1.0e-4",
        "--lr-decay-style cosine",
        "--weight-decay 0.1",
        "--clip-grad 1.0",
        "--log-interval 1",
        "--log-throughput",
        "--eval-iters 0",
    )


def megatron_environment(launch: TrainingLaunch) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the variables to set and those that must not be set.

    Kernels of tensor and context parallelism must be queued in order before Blackwell, hence one connection;
    Megatron's own FSDP refuses that setting.
    """
    s = launch.strategy
    environment = {"NVTE_FWD_LAYERNORM_SM_MARGIN": "16", "NVTE_BWD_LAYERNORM_SM_MARGIN": "16"}
    if launch.vendor != "nvidia":
        environment = {}
    if s.zero >= 2:
        return environment, ("CUDA_DEVICE_MAX_CONNECTIONS",)
    if (s.tp > 1 or s.cp > 1) and not launch.device.startswith(_BLACKWELL):
        environment["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    return environment, ()


def communicator_config(launch: TrainingLaunch) -> tuple[dict[str, dict[str, str]], tuple[Caveat, ...]]:
    """Return per parallel group which network its communicator uses, where islands differ.

    A group that stays inside an island keeps its fast adapters; one that spans two uses sockets, which is
    what both have.
    """
    if len({host.group for host in launch.hosts}) < 2:
        return {}, ()
    crossing = crossing_groups(launch)
    s = launch.strategy
    sizes = {"tp": s.tp, "cp": s.cp, "dp": s.dp, "pp": s.pp}
    spans = {axis: crossing[axis] for axis in crossing if sizes[axis] > 1}
    if s.dp * s.cp > 1:
        spans["dp_cp"] = crossing["dp"] or crossing["cp"]
    if s.pp > 1:
        spans["embd"] = spans["pos_embd"] = crossing["pp"]
        spans["mp"] = crossing["pp"] or crossing["tp"]
    if s.ep > 1:
        inside = crossing["tp"] or crossing["cp"] or crossing["dp"]
        spans["ep"] = spans["ep_dp"] = inside
    groups = {name: {"net_name": "socket" if spans[name] else "IB"} for name in sorted(spans)}
    return groups, ()
