"""A power plan: how full a row may be, which clocks a pipeline runs at, which caps a fleet runs under."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from planner.facility import SiteEnergy
from planner.plan import Check

__all__ = ["CapRow", "ClockPoint", "PowerPlan", "RowAnswer", "RowOption", "ServingCaps", "TrainingClocks"]

_FILE = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOption:
    """What one number of servers would do."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    num_servers: int
    safe: bool
    peak_frac: float
    """Of the budget, over all seeds, under control."""
    num_brakes: int
    brakes_per_year: float
    breach_probability: float
    high_p50_frac: float
    low_p50_frac: float
    """Median latency gained over the row without control."""
    high_p99_frac: float = 0.0
    low_p99_frac: float = 0.0
    """The same at the 99th percentile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAnswer:
    """How many servers fit, and how the controller keeps them there."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    num_servers: int
    rated_servers: int
    added_frac: float
    budget_w: float
    thresholds_frac: tuple[float, ...]
    low_clocks_mhz: tuple[float, ...]
    high_clocks_mhz: tuple[float, ...]
    hysteresis_frac: float
    spike_frac: float
    delay_s: float
    options: tuple[RowOption, ...]
    """The counts around the choice: the knee."""
    day_frac: tuple[float, ...]
    """Draw over budget through the day of the first seed, the highest of every tenth of an hour."""
    mean_w: float | None = None
    """Mean draw of the row over the simulated hours."""
    site: SiteEnergy | None = None
    """With cooling, where a facility was asked for; the servers' draw holds the hosts already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockPoint:
    """One deadline of a pipeline."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    slowdown_frac: float
    deadline_s: float
    energy_j: float
    saved_frac: float
    """Against every operation at its fastest clock."""
    rounded_saved_frac: float
    """With whole clocks, as the files set them."""
    static_saved_frac: float
    """With one clock per stage and direction."""
    static_clocks_mhz: tuple[tuple[int, int], ...]
    """Forward and backward clock of every stage."""
    operation_clocks_mhz: tuple[tuple[int, ...], ...]
    """Clock of every operation of a stage, in the order it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingClocks:
    """Clocks along a training pipeline: a table to look a straggler's deadline up in."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    device: str
    num_stages: int
    num_microbatches: int
    devices_per_stage: int
    fastest_s: float
    fastest_energy_j: float
    blocked_w: float
    points: tuple[ClockPoint, ...]
    straggler_deadline_s: float | None = None
    """Deadline of the point to run at beside the straggler that was asked about: none ends later than it."""
    site: SiteEnergy | None = None
    """Of the fastest point, with hosts and cooling, where a facility was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapRow:
    """One pool of a serving fleet."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    pool: str
    device: str
    role: str
    num_devices: int
    natural_w: float
    cap_w: float
    inert: bool
    """The cap binds nothing."""
    clock_frac: float
    """Clock to hold, over its maximum, where clocks are locked in place of caps."""
    throughput_frac: float
    watts: float
    """Of one device under the cap."""
    below_floor: bool
    """Below the share of rated power under which energy rises again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingCaps:
    """Caps of every pool and what they come to."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    pools: tuple[CapRow, ...]
    natural_w: float
    watts: float
    joules_per_token: float | None
    latency: Mapping[str, float]
    """Tail latencies under the caps. [s]"""
    site: SiteEnergy | None = None
    """With hosts and cooling, where a facility was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerPlan:
    """The answers to one request about power."""

    __pydantic_config__: ClassVar[ConfigDict] = _FILE

    row: RowAnswer | None = None
    training: TrainingClocks | None = None
    serving: ServingCaps | None = None
    certificate: tuple[Check, ...] = ()
