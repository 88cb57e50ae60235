"""A serving plan: instances by device and engine configuration, the router's split, its prediction."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from hardware.price_file import OfferKind
from planner.facility import SiteEnergy
from planner.plan import Check
from planner.serving.caps import PowerCap

__all__ = [
    "FleetStrategy",
    "LayerSpan",
    "MixEntry",
    "ModelPrediction",
    "PlanLevel",
    "Purchase",
    "Route",
    "ServingPlan",
    "ServingPrediction",
    "SimulatedCheck",
]

_FILE = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixEntry:
    """Identical instances."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    name: str
    """Used by the routes."""
    device: str
    count: int
    role: Literal["both", "prefill", "decode"]
    config: Mapping[str, int | bool | str]
    """Degrees, formats and limits of the engine: see `ServingConfig`."""
    devices_per_instance: int
    usd_per_hour: float
    """Of one instance; mean over the offers on which they are bought."""
    load_frac: float
    """Share of the instances' capacity that the routed load takes."""
    model: str | None = None
    """Where the fleet serves several."""
    watts_per_device: float | None = None
    """Mean draw of a busy device; null where its power is unknown."""
    cap: PowerCap | None = None
    """Of every device; null where none is set."""
    offers: Mapping[str, int] = field(default_factory=dict)
    """Instances by the offer on which they are bought, where there are several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where requests of one size go."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    prompt_tokens_up_to: int | None
    """Null is without limit."""
    output_tokens_up_to: int | None
    rate_per_s: float
    role: Literal["both", "prefill", "decode"]
    shares: Mapping[str, float]
    """Of these requests, by the name of the instances."""
    model: str | None = None
    """Where the fleet serves several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCheck:
    """What replays of the workload on the planned fleet showed."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    num_requests: int
    attainment_frac: float
    """Requests within all targets."""
    ttft_s: float
    """At the request's percentile."""
    tpot_s: float
    holds: bool
    num_replications: int = 1
    """A trace is replayed once; a described workload as several made traces."""
    attainment_low_frac: float | None = None
    """Requests within the target that is kept least, at the low end of its confidence interval."""
    confidence_frac: float | None = None
    """One-sided, over the replications; null for a single replay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrediction:
    """What one model of a fleet of several is predicted to do."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    model: str
    form: Literal["joint", "split"]
    ttft_s: float
    tpot_s: float
    requests_per_s: float
    throughput_tokens_per_s: float
    cost_usd_per_hour: float
    headroom_frac: float
    simulated: SimulatedCheck | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpan:
    """Consecutive layers on one machine."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    machine: int
    device: str
    num_devices: int
    first_layer: int
    num_layers: int
    tokens_per_s: float
    """That the machine passes through these layers, prompt and output tokens of whole requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """What is bought on one offer."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    offer: str
    device: str
    kind: OfferKind
    num_devices: int
    """Committed ones, or those used at the busiest hours."""
    usd_per_hour: float
    """Of one device."""
    mean_usd_per_hour: float
    """Its part of the bill, mean over the day."""
    provider: str | None = None
    region: str | None = None
    commitment_months: int | None = None
    upfront_usd: float = 0.0
    """Due on the first day."""
    committed_usd: float = 0.0
    """Due over the whole term, used or not; what is due on the first day included."""
    away_frac: float = 0.0
    """Of a spot instance: share of time that it is interrupted and not yet replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLevel:
    """What serves the load at some hours of the day."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    rate_frac: float
    """Of the peak."""
    hours_per_day: float
    mix: tuple[MixEntry, ...]
    routing: tuple[Route, ...]
    offers: Mapping[str, int]
    """Devices used, by offer."""
    usd_per_hour: float
    """At these hours, idle reserved devices included."""
    num_away: int
    """Interruptible instances that may be missing at once; the load is carried without them."""
    simulated: tuple[SimulatedCheck, ...] = ()
    """By model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPrediction:
    """What the fleet is predicted to do at the request's percentile; of several models, the worst latency."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    ttft_s: float
    tpot_s: float
    throughput_tokens_per_s: float
    """Output tokens of the workload, which the fleet sustains."""
    requests_per_s: float
    num_devices: int
    cost_usd_per_hour: float
    """Mean over the day, where its hours differ."""
    cost_usd_per_million_tokens: float
    """Prompt and output tokens."""
    best_single_usd_per_hour: float | None
    """Of the cheapest fleet of one kind of instance, per phase and model; null where none does."""
    bound_usd_per_hour: float | None
    """Proven: no mix of these instances is cheaper. Null where another objective was asked for."""
    watts: float | None
    """Draw of all devices with every instance busy; a power budget is held against it."""
    headroom_frac: float
    """Capacity beyond the mean load that the targets under real arrivals needed; capacity is what queueing
    formulas give, so replays may bear less of it than the load (a negative figure)."""
    simulated: SimulatedCheck | None = None
    joules_per_token: float | None = None
    """Energy of all devices for one output token at the planned rate; null where their power is unknown."""
    mean_watts: float | None = None
    """Mean draw of all devices at the planned rate: instances below their capacity draw less."""
    watts_low: float | None = None
    """Lower end of the 90 % interval, all instances off by the same share."""
    watts_high: float | None = None
    site: SiteEnergy | None = None
    """With hosts and cooling, where a facility was asked for."""
    bound_watts: float | None = None
    """Proven, with the objective energy: no mix of these instances draws less."""
    bound_requests_per_s: float | None = None
    """Proven, with the objective throughput: no mix within the limits serves more."""
    by_model: tuple[ModelPrediction, ...] = ()
    """Where the fleet serves several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStrategy:
    """The form of the fleet in one line."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    form: Literal["joint", "split", "mixed", "layers"]
    """`mixed`: models of one fleet in different forms; `layers`: one model's layers over unlike machines."""
    engine: str
    instances: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPlan:
    """One fleet that serves the workload."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    strategy: FleetStrategy
    mix: tuple[MixEntry, ...]
    routing: tuple[Route, ...]
    predicted: ServingPrediction
    certificate: tuple[Check, ...]
    reason: str
    """Why this fleet and not another."""
    layers: tuple[LayerSpan, ...] = ()
    """Which layers each machine holds, where no instance of one kind holds the model."""
    purchases: tuple[Purchase, ...] = ()
    """Where devices have several offers or hours of the day differ."""
    levels: tuple[PlanLevel, ...] = ()
    """The peak first; mix and predictions are those of the peak, cost apart."""
    extra: Mapping[str, Any] = field(default_factory=dict)
