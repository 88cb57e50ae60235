"""What is asked: a training request from a YAML file, from flags, or from both (flags win).

Keys of the file and flags have the same names (`seq_len` in the file, `--seq-len` on the command line).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field

from costmodels.job import TrainingJob
from costmodels.strategy import Recompute, Strategy
from hardware.cluster import Cluster
from hardware.errors import InputError, OutOfDomainError, PlannerError, SpecError
from hardware.schema import read_yaml, validate
from planner.facility import FacilityOption

__all__ = [
    "DEFAULT_STACK",
    "TrainRequest",
    "allowed_values",
    "group_speeds",
    "named_speeds",
    "read_train_request",
    "resolve",
]

DEFAULT_STACK = "megatron-core"

_PEAKS = {
    "bf16": ("bf16", "fp16"),
    "fp16": ("fp16", "bf16"),
    "fp8": ("fp8",),
    "mxfp8": ("fp8",),
    "fp8-block": ("fp8",),
    "nvfp4": ("fp4",),
    "fp32": ("fp32", "tf32"),
}
"""Rated peaks of a device that serve each precision; the 16-bit formats run at the same rate."""

Count = Annotated[int, Field(ge=1)]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """One question: how to train this model on this cluster fastest."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str
    """Catalogue name, or path of a Hugging Face config.json."""
    cluster: str
    """Catalogue name of a cluster or node, or path of a YAML file."""
    seq_len: Count
    """Tokens per sequence."""
    global_batch: Count
    """Sequences per optimizer step, over all replicas."""
    nodes: Count | None = None
    """How many nodes; needed where the cluster does not fix it."""
    devices_per_node: Count | None = None
    """How many devices of every node are used, such as 64 of a rack's 72; null for all."""
    precision: Literal["bf16", "fp16", "fp8", "mxfp8", "fp8-block", "nvfp4", "fp32"] = "bf16"
    """Matmul dtype."""
    stack: str = DEFAULT_STACK
    """Software stack whose kernels and overheads apply."""
    optimizer: Literal["adam"] = "adam"
    top: Count = 5
    """How many plans to return, best first."""
    min_fits_probability: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """A strategy counts as fitting from this probability on."""
    allow: Mapping[str, tuple[int | bool | str, ...]] = field(default_factory=dict)
    """Values that a column of the strategy may take, for example `tp: [4, 8]` or `recompute: [none]`."""
    objective: Literal["throughput", "energy", "cost"] = "throughput"
    """What the best plan makes least: time, joules or dollars per step."""
    power_budget_w: Annotated[float, Field(gt=0)] | None = None
    """What all devices together may draw; every device is capped at its share."""
    facility: FacilityOption | None = None
    """The site whose hosts, cooling, electricity and carbon are counted too; null for devices alone."""
    attained: Mapping[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)
    """Measured speed of a device of each group, by its name, in any unit; replaces predicted ratios."""
    local_steps: Count | None = None
    """Groups train alone and average their models every so many steps; changes the algorithm."""
    local_overlap: bool = True
    """The averaging of `local_steps` runs under the next round, and models are one round older."""
    quantized_sharding: bool = False
    """Also plan sharded weights that travel in 8 bits and gradients in 4; changes the numbers computed."""
    layer_profiles: str | None = None
    """YAML file that names measured layer times of the model on the cluster's groups."""
    catalog: tuple[str, ...] = ()
    """Folders with further devices, nodes and clusters."""


def read_train_request(path: str | None, flags: Mapping[str, Any]) -> TrainRequest:
    """Return the request of a file, overridden by the flags that were given (those not None or empty)."""
    given = {key: value for key, value in flags.items() if value is not None and value != ()}
    if path is None:
        return validate(TrainRequest, given, "request")
    return validate(TrainRequest, read_yaml(Path(path)) | given, path)


def allowed_values(request: TrainRequest) -> dict[str, tuple[int, ...]]:
    """Return `request.allow` as column values.

    Raises
    ------
    SpecError
        naming every unknown column and wrong value.
    """
    known = {f.name: f.default for f in fields(Strategy)}
    found: dict[str, tuple[int, ...]] = {}
    problems = []
    for name, values in sorted(request.allow.items()):
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            problems.append(f"allow.{name}: no column of a strategy ({hint})")
            continue
        names = {r.name.lower(): int(r) for r in Recompute} if name == "recompute" else {}
        wrong = [v for v in values if (v not in names if names else isinstance(v, str))]
        if wrong:
            accepted = ", ".join(names) if names else "numbers"
            problems.append(f"allow.{name}: {wrong[0]!r} is not accepted; accepted: {accepted}")
            continue
        found[name] = tuple(names[str(v)] if names else int(v) for v in values)
    if problems:
        raise SpecError("request", problems)
    return found


def named_speeds(words: Sequence[str]) -> dict[str, str] | None:
    """Return ``GROUP=SPEED`` words as a mapping, None for no words.

    Raises
    ------
    InputError
        naming the word that is none, or the group that comes twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, speed = word.partition("=")
        if not equals or not name or name in found:
            message = f"attained: {word!r} is not GROUP=SPEED (for example infiniband=197), each group once"
            raise InputError(message)
        found[name] = speed
    return found or None


def group_speeds(request: TrainRequest, cluster: Cluster) -> dict[int, float]:
    """Return `request.attained` by the index of the group; empty where nothing was measured.

    Raises
    ------
    InputError
        if it does not name exactly the groups of the cluster.
    """
    if not request.attained:
        return {}
    names = [group.name or str(index) for index, group in enumerate(cluster.groups)]
    if set(request.attained) != set(names) or len(names) == 1:
        message = (
            f"attained: names {', '.join(sorted(request.attained))}; cluster {cluster.name} has the groups "
            f"{', '.join(names)}, and each of at least two needs a speed"
        )
        raise InputError(message)
    return {index: request.attained[name] for index, name in enumerate(names)}


def _tried(problems: list[PlannerError], call: Callable[[], T]) -> T | None:
    try:
        return call()
    except PlannerError as error:
        problems.append(error)
        return None


def _check_precision(precision: str, cluster: Cluster) -> None:
    """Raise where a device of the cluster cannot run the precision."""
    for device in dict.fromkeys(group.node.device for group in cluster.groups):
        able = [p for p, names in _PEAKS.items() if any(device.rates(name) for name in names)]
        if precision not in able:
            message = f"precision: {precision!r} is not rated on {device.name}; it runs {', '.join(able)}"
            raise OutOfDomainError(message)


def _used_cluster(request: TrainRequest) -> Cluster:
    from hardware.catalog import find_cluster

    found = find_cluster(request.cluster, request.nodes, catalogs=request.catalog)
    return (
        found if request.devices_per_node is None else found.with_devices_per_node(request.devices_per_node)
    )


def resolve(request: TrainRequest) -> tuple[TrainingJob, Cluster]:
    """Return the job and the cluster that a request names.

    Raises
    ------
    PlannerError
        the one problem that was found, or a SpecError with all of them.
    """
    from costmodels.models import find_model
    from costmodels.stacks import find_stack

    problems: list[PlannerError] = []
    model = _tried(problems, lambda: find_model(request.model))
    cluster = _tried(problems, lambda: _used_cluster(request))
    _tried(problems, lambda: find_stack(request.stack))
    _tried(problems, lambda: allowed_values(request))
    if cluster is not None:
        found = cluster
        _tried(problems, lambda: _check_precision(request.precision, found))
    if len(problems) == 1:
        raise problems[0]
    if model is None or cluster is None or problems:
        raise SpecError("request", [str(p) for p in problems])
    job = TrainingJob(
        model=model,
        seq_len=request.seq_len,
        global_batch=request.global_batch,
        precision=request.precision,
        stack=request.stack,
        optimizer=request.optimizer,
    )
    return job, cluster
