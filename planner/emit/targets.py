"""The targets that `meshwright emit` knows, and how a name such as `vllm@0.33` is read."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from hardware.errors import InputError, UnknownNameError
from planner.emit.emission import Emission

__all__ = ["ALIASES", "TARGETS", "TRAINING_SCHEDULERS", "Target", "find_target"]

TRAINING_SCHEDULERS = ("torchrun", "slurm", "kubernetes", "ray", "skypilot")
_SERVING_SCHEDULERS = ("shell", "slurm", "kubernetes", "ray", "skypilot")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One framework: the module that emits for it and the versions whose flags that module knows."""

    kind: str
    """Of the plans that it takes: train or serve."""
    module: str
    versions: tuple[str, ...]
    """Newest first; the first is the default."""
    schedulers: tuple[str, ...] = TRAINING_SCHEDULERS
    """The first is the default."""

    def load(self) -> Callable[..., Emission]:
        """Return the emitter; this is what imports its module."""
        function: Callable[..., Emission] = import_module(self.module).emit
        return function


TARGETS: dict[str, Target] = {
    "megatron-lm": Target(kind="train", module="planner.emit.megatron_lm", versions=("0.20", "0.19")),
    "megatron-bridge": Target(kind="train", module="planner.emit.megatron_bridge", versions=("0.3",)),
    "mindspeed": Target(kind="train", module="planner.emit.mindspeed", versions=("2026.07",)),
    "deepspeed": Target(kind="train", module="planner.emit.deepspeed", versions=("0.19",)),
    "fsdp": Target(kind="train", module="planner.emit.fsdp", versions=("2.13",)),
    "accelerate": Target(kind="train", module="planner.emit.accelerate", versions=("1.15",)),
    "torchtitan": Target(kind="train", module="planner.emit.torchtitan", versions=("0.3",)),
    "vllm": Target(
        kind="serve", module="planner.emit.vllm", versions=("0.33",), schedulers=_SERVING_SCHEDULERS
    ),
    "sglang": Target(
        kind="serve", module="planner.emit.sglang", versions=("0.5.23",), schedulers=_SERVING_SCHEDULERS
    ),
    "tensorrt-llm": Target(
        kind="serve",
        module="planner.emit.tensorrt_llm",
        versions=("1.4", "1.3"),
        schedulers=_SERVING_SCHEDULERS,
    ),
    "dynamo": Target(
        kind="serve", module="planner.emit.dynamo", versions=("1.5",), schedulers=("kubernetes",)
    ),
    "llm-d": Target(kind="serve", module="planner.emit.llm_d", versions=("0.5",), schedulers=("kubernetes",)),
}
"""Every target by name."""

ALIASES = {"megatron": "megatron-lm", "trtllm": "tensorrt-llm", "nemo": "megatron-bridge", "fsdp2": "fsdp"}


def find_target(text: str) -> tuple[str, str, Target]:
    """Return name, version and target of ``NAME`` or ``NAME@VERSION``.

    Raises
    ------
    UnknownNameError
        if no target has that name.
    InputError
        if its flags are not known for that version.
    """
    name, _, version = text.partition("@")
    name = ALIASES.get(name, name)
    if name not in TARGETS:
        raise UnknownNameError("target", name, [*TARGETS, *ALIASES])
    target = TARGETS[name]
    known = [v for v in target.versions if version == v or version.startswith(f"{v}.")]
    if version and not known:
        message = f"{name}: version {version!r} is not known; known: {', '.join(target.versions)}"
        raise InputError(message)
    return name, known[0] if version else target.versions[0], target
