"""A serving plan: instances by device and engine configuration, the router's split, its prediction."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from planner.plan import Check

__all__ = ["FleetStrategy", "MixEntry", "Route", "ServingPlan", "ServingPrediction", "SimulatedCheck"]

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
    """Of one instance."""
    load_frac: float
    """Share of the instances' capacity that the routed load takes."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCheck:
    """What a replay of the workload on the planned fleet showed."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    num_requests: int
    attainment_frac: float
    """Requests within all targets."""
    ttft_s: float
    """At the request's percentile."""
    tpot_s: float
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPrediction:
    """What the fleet is predicted to do at the request's percentile."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    ttft_s: float
    tpot_s: float
    throughput_tokens_per_s: float
    """Output tokens of the workload, which the fleet sustains."""
    requests_per_s: float
    num_devices: int
    cost_usd_per_hour: float
    cost_usd_per_million_tokens: float
    """Prompt and output tokens."""
    best_single_usd_per_hour: float | None
    """Of the cheapest fleet of one kind of instance; null where none serves every size."""
    bound_usd_per_hour: float
    """Proven: no mix of these instances is cheaper."""
    watts: float | None
    headroom_frac: float
    """Capacity beyond the mean load that the targets under real arrivals needed."""
    simulated: SimulatedCheck | None = None
    joules_per_token: float | None = None
    """Energy of all devices for one output token; null where their power is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStrategy:
    """The form of the fleet in one line."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    form: Literal["joint", "split"]
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
    extra: Mapping[str, Any] = field(default_factory=dict)
