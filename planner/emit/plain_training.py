"""What the targets share that come with a small trainer: its settings, its text, and what it cannot do."""

import json
from dataclasses import asdict
from importlib.resources import files
from math import ceil
from typing import Any

from costmodels.strategy import Recompute
from hardware.errors import OutOfDomainError
from planner.emit.emission import Caveat, header
from planner.emit.training_launch import TrainingLaunch

__all__ = [
    "program_text",
    "recompute_layers",
    "require_degrees",
    "require_dense",
    "settings_text",
    "shared_caveats",
]


def require_degrees(launch: TrainingLaunch, *, only: tuple[str, ...], elsewhere: str) -> None:
    """Raise where a degree that the target lacks is above one: without it the job would be another one.

    Raises
    ------
    OutOfDomainError
        naming the degrees and the targets that have them.
    """
    s = launch.strategy
    degrees = {"tp": s.tp, "pp": s.pp, "cp": s.cp, "ep": s.ep, "vpp": s.vpp}
    lacking = [f"{n} {v}" for n, v in degrees.items() if v > 1 and n not in only]
    if lacking:
        message = (
            f"target {launch.origin.target} has no {', '.join(lacking)}; emit this plan for {elsewhere}, or "
            f"plan with these degrees at 1 (`allow` in the request)"
        )
        raise OutOfDomainError(message)


def require_dense(launch: TrainingLaunch) -> None:
    """Raise where the model has parts that the small trainer does not build.

    Raises
    ------
    OutOfDomainError
        for experts, latent attention, or windows.
    """
    shape = launch.shape
    parts = {
        "experts": bool(shape.num_experts),
        "latent attention": shape.latent is not None,
        "norms of queries and keys": shape.qk_norm,
    }
    found = [name for name, there in parts.items() if there]
    if found:
        message = (
            f"target {launch.origin.target} comes with a trainer of plain decoders; {shape.name} has "
            f"{' and '.join(found)}; emit it for megatron-lm or torchtitan"
        )
        raise OutOfDomainError(message)


def shared_caveats(launch: TrainingLaunch) -> tuple[Caveat, ...]:
    """Return what none of the small trainers expresses."""
    s = launch.strategy
    found = []
    if launch.shape.window is not None:
        feature = f"attention window of {launch.shape.window}"
        found.append(Caveat(feature=feature, instead="attention is full"))
    if launch.precision not in ("bf16", "fp16", "fp32"):
        feature = f"precision {launch.precision}"
        found.append(Caveat(feature=feature, instead="matrix products run in bf16"))
    if s.recompute is Recompute.SELECTIVE:
        what = "fused attention never keeps the scores, nothing else is recomputed"
        found.append(Caveat(feature="strategy.recompute selective", instead=what))
    return tuple(found)


def recompute_layers(launch: TrainingLaunch) -> int:
    """Return how many blocks of the whole model run under recompute."""
    s = launch.strategy
    if s.recompute is not Recompute.FULL:
        return 0
    return min(s.recompute_layers * s.pp, launch.shape.num_layers) or launch.shape.num_layers


def settings_text(launch: TrainingLaunch, **more: Any) -> str:
    """Return settings.json of the small trainers."""
    s = launch.strategy
    precision = launch.precision if launch.precision in ("bf16", "fp16", "fp32") else "bf16"
    shards = s.shard_group or s.dp * s.cp
    document = {
        "plan_sha256": launch.origin.plan_sha256,
        "world": s.world,
        "tp": s.tp,
        "cp": s.cp,
        "pp": s.pp,
        "seq_len": launch.seq_len,
        "micro_batch": s.micro_batch,
        "num_micro_batches": launch.num_micro_batches,
        "precision": precision,
        "shards_optimizer": s.zero >= 1,
        "shards_weights": s.zero >= 2,
        "reshard_after_forward": s.zero == 3,
        "replicate": ceil(s.dp * s.cp / shards),
        "shard": shards,
        "recompute_layers": recompute_layers(launch),
        **more,
        "model": {k: v for k, v in asdict(launch.shape).items() if not isinstance(v, tuple | dict)},
    }
    return json.dumps(document, indent=2) + "\n"


def program_text(launch: TrainingLaunch, name: str) -> str:
    """Return a shipped Python program with this emission's header."""
    text = files("planner.emit").joinpath("programs", f"{name}.txt").read_text(encoding="utf-8")
    return header(launch.origin) + text
