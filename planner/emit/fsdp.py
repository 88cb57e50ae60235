"""PyTorch alone: FSDP2 under torchrun, with a small trainer that runs as emitted."""

from planner.emit.emission import Caveat, Emission
from planner.emit.plain_training import (
    program_text,
    require_degrees,
    require_dense,
    settings_text,
    shared_caveats,
)
from planner.emit.program import Program, program_emission
from planner.emit.training_launch import TrainingLaunch

__all__ = ["emit"]


def emit(launch: TrainingLaunch) -> Emission:
    """Return the files of a training job in plain PyTorch.

    Raises
    ------
    OutOfDomainError
        for degrees other than dp, and for models that the trainer does not build.
    """
    require_degrees(launch, only=(), elsewhere="torchtitan or megatron-lm")
    require_dense(launch)
    program = Program(
        entry="train_fsdp.py",
        arguments=("--settings settings.json",),
        run_arguments=("--steps 20", "--lr 3e-4"),
        environment={"OMP_NUM_THREADS": "1"},
        files={
            "decoder.py": program_text(launch, "decoder.py"),
            "train_fsdp.py": program_text(launch, "train_fsdp.py"),
            "settings.json": settings_text(launch),
        },
        caveats=(*shared_caveats(launch), *_caveats(launch)),
    )
    return program_emission(launch, program)


def _caveats(launch: TrainingLaunch) -> tuple[Caveat, ...]:
    s = launch.strategy
    found = []
    if s.zero == 1 and s.shard_group not in (0, s.dp):
        what = "ZeroRedundancyOptimizer shards the optimizer over all replicas"
        found.append(Caveat(feature=f"strategy.shard_group {s.shard_group}", instead=what))
    if not s.overlap_dp and s.dp > 1:
        what = "PyTorch always overlaps gradient reduction with backward"
        found.append(Caveat(feature="strategy.overlap_dp off", instead=what))
    return tuple(found)
