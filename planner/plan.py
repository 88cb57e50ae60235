"""A plan: what to do, what it is predicted to cost, and what was checked.

One envelope (`PlanFile`) serves every kind; the kind decides the type of its plans (`TrainingPlan` here).
Field names are the file format: see `planner.plan_io` for reading and writing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, WithJsonSchema

from costmodels.strategy import Recompute, Strategy
from planner.facility import SiteEnergy

__all__ = [
    "SCHEMA_VERSION",
    "Check",
    "Excluded",
    "FrontPoint",
    "LocalUpdates",
    "Placement",
    "PlanFile",
    "PlannedIsland",
    "PlannedRank",
    "PlannedSeats",
    "PlannedSharding",
    "PlannedStage",
    "Provenance",
    "Search",
    "TrainingPlan",
    "TrainingPrediction",
    "strategy_from_document",
]

SCHEMA_VERSION = 1
"""Of every plan file; raise it together with an upgrade function in `planner.plan_io`."""

_FILE = ConfigDict(extra="forbid", use_attribute_docstrings=True)

P = TypeVar("P")


_FROM_ZERO = ("dp", "zero", "shard_group", "recompute_layers")
"""Columns of a strategy in which 0 has a meaning of its own: all, or none."""


def strategy_from_document(value: object) -> object:
    """Return the `Strategy` that a mapping of a plan file describes; anything else unchanged.

    Raises
    ------
    ValueError
        naming the unknown keys or the wrong value.
    """
    if not isinstance(value, Mapping):
        return value
    known = {f.name: f for f in fields(Strategy)}
    unknown = sorted(set(value) - set(known))
    if unknown:
        message = f"unexpected keys {', '.join(unknown)}; known: {', '.join(known)}"
        raise ValueError(message)
    columns: dict[str, Any] = dict(value)
    for name, entry in columns.items():
        default = known[name].default
        if name == "recompute":
            columns[name] = _recompute(entry)
        elif isinstance(default, bool):
            if not isinstance(entry, bool):
                message = f"{name}: {entry!r} is not true or false"
                raise ValueError(message)
        elif type(entry) is not int or entry < int(name not in _FROM_ZERO):
            message = f"{name}: {entry!r} is not an integer from {int(name not in _FROM_ZERO)} up"
            raise ValueError(message)
    return Strategy(**columns)


def _recompute(value: object) -> Recompute:
    names = [r.name.lower() for r in Recompute]
    if value not in names:
        message = f"recompute: {value!r} is none of {', '.join(names)}"
        raise ValueError(message)
    return Recompute(names.index(str(value)))


def _strategy_schema() -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for f in fields(Strategy):
        if f.name == "recompute":
            properties[f.name] = {"enum": [r.name.lower() for r in Recompute]}
        else:
            properties[f.name] = {"type": "boolean" if isinstance(f.default, bool) else "integer"}
    return {"type": "object", "additionalProperties": False, "properties": properties}


FileStrategy = Annotated[
    Strategy, BeforeValidator(strategy_from_document), WithJsonSchema(_strategy_schema(), mode="validation")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPrediction:
    """What one optimizer step is predicted to cost."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    step_s: float
    """Time of one optimizer step: the sum of `time_parts_s`."""
    step_low_s: float
    """Lower end of the 90 % interval."""
    step_high_s: float
    """Upper end of the 90 % interval."""
    tokens_per_s_per_device: float
    mfu_frac: float
    """Model FLOPs per second over the rated peak of the precision, 0..1; of causal attention the half that is
    not masked."""
    peak_memory_bytes: float
    """Of the fullest stage: the sum of `memory_parts_bytes`."""
    memory_parts_bytes: Mapping[str, float]
    memory_capacity_bytes: float
    """Rated memory of one device."""
    fits_probability: float
    """Probability that the step runs without exhausting memory."""
    time_parts_s: Mapping[str, float]
    """What the step's time consists of; exposed time only, what overlap hides is not in it."""
    energy_j: float | None = None
    """Of all devices for one step; null where the device's power is unknown."""
    cost_usd: float | None = None
    """Of one step; null where no price is known."""
    watts_per_device: float | None = None
    """Mean draw of one device through the step; null where its power is unknown."""
    joules_per_token: float | None = None
    """Energy of all devices for one token."""
    site: SiteEnergy | None = None
    """With hosts and cooling, where a facility was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRank:
    """Where one process runs and what it is in every parallel group."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    rank: int
    host: str
    device: int
    """Index of the device inside its host."""
    coordinates: Mapping[str, int]
    """Position in each parallel group: tp, cp, dp, pp, and ep, etp where experts are spread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which rank runs on which device."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    ranks: tuple[PlannedRank, ...]
    gain_frac: float = 0.0
    """Communication time saved against the framework's default order."""
    bound_frac: float | None = None
    """No placement can save more than this; null where no bound was computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One invariant of a plan that was verified after it was made."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    name: str
    holds: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSeats:
    """Replicas of one stage that one group of the cluster holds."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    group: str
    tp: int
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """One pipeline stage of a plan whose stages differ."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    group: str
    """Group of the cluster whose devices hold the stage."""
    tp: int
    num_layers: int
    peak_memory_bytes: float
    seats: tuple[PlannedSeats, ...] = ()
    """Where groups share the stage's replicas, in their order; empty where `group` holds all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedIsland:
    """What one group does between two averagings of the model."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    group: str
    strategy: FileStrategy
    global_batch: int
    """Sequences of the global batch that this group takes per step."""
    step_s: float
    peak_memory_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSharding:
    """Full sharding whose kinds of state are divided over different groups of neighbouring replicas."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    weight_ranks: int
    """Replicas over which weights are divided."""
    backward_ranks: int
    """Replicas that weights are gathered over for backward; fewer than `weight_ranks`: from a second copy."""
    gradient_ranks: int
    optimizer_ranks: int
    quantized: bool = False
    """Weights travel in 8 bits and gradients in 4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalUpdates:
    """Islands that train alone and average their models now and then; another algorithm, never unasked."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    local_steps: int
    """Optimizer steps between two averagings."""
    overlapped: bool
    """Whether the averaging runs under the next round."""
    staleness_steps: int
    """Age of the other islands' updates when they arrive."""
    reduce_s: float
    """Time of one averaging over the joining links."""
    exposed_s: float
    """What of it every step still waits for, on average."""
    islands: tuple[PlannedIsland, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """One way to train, with its predicted cost."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    strategy: FileStrategy
    predicted: TrainingPrediction
    placement: Placement
    certificate: tuple[Check, ...]
    stages: tuple[PlannedStage, ...] = ()
    """Of a cluster of unlike groups; empty where all stages are alike."""
    local_updates: LocalUpdates | None = None
    """Where islands average models instead of reducing gradients; `strategy` is then the first island's."""
    sharding: PlannedSharding | None = None
    """Where weights, gradients and optimizer end at different borders; `strategy.zero` is then 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """A strategy that no other beats in both time and memory."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    strategy: FileStrategy
    step_s: float
    peak_memory_bytes: float
    fits_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """A family of configurations that was not searched."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    rule: str
    count: int
    """Partial configurations that the rule cut off (each stands for all that would have grown from it)."""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What was searched."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    num_configs: int
    num_feasible: int
    wall_s: float
    """Time of the search; the one entry of a plan file that differs from run to run."""
    excluded: tuple[Excluded, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What the plan was made from."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    tool_version: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    """sha256 of every input, by what it is: model, cluster, request."""
    coefficients: Mapping[str, str] = field(default_factory=dict)
    """sha256 of every coefficient file that took part, by name."""
    solver: str | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile(Generic[P]):
    """A request, the plans that answer it (best first) and how they were found."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    schema_version: int = SCHEMA_VERSION
    kind: Literal["train", "serve", "power"]
    request: Mapping[str, Any]
    plans: tuple[P, ...]
    search: Search
    diagnostics: tuple[str, ...] = ()
    """What to know before relying on the plan: assumptions, extrapolation, missing figures."""
    provenance: Provenance
    pareto: tuple[FrontPoint, ...] = ()
    """Training: strategies that fit and that no other beats in both time and memory, fastest first."""
