"""The format of fleet files: pools, engines and rules as they are written, each value checked on its own.

An engine's iteration times come from one of three places: the catalogue (``device``), a measured layer
profile (``profile``: path and prefix of its tables), or fitted coefficients (``coefficients``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from hardware.units import BytesPerSecond, Seconds, UsdPerHour, Watts
from planner.simulate.settings import Preemption, Role

__all__ = ["CoefficientsEntry", "EngineEntry", "FleetFile", "LinkEntry", "PoolEntry"]

_STRICT: ConfigDict = ConfigDict(extra="forbid", use_attribute_docstrings=True)
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Three = tuple[Finite, Finite, Finite]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoefficientsEntry:
    """Affine iteration times; see `AffineTimer`. Seconds, and seconds per token, square token, sequence."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    prefill: Three
    decode_small: Three
    decode_large: Three | None = None
    large_batch: Count = 1 << 30
    overhead_s: Seconds = 0.0
    overhead_per_token_s: Seconds = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEntry:
    """One kind of engine."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    model: str | None = None
    """Catalogue name or path of a config.json."""
    device: str | None = None
    """Catalogue device whose cost model gives the iteration times."""
    stack: str = "vllm"
    """Inference engine of the cost model."""
    profile: str | None = None
    """Path and prefix of measured layer tables, relative to this file."""
    coefficients: CoefficientsEntry | None = None
    tp: Count = 1
    pp: Count = 1
    dp: Count = 1
    ep: Count = 1
    weights: str = "bf16"
    experts: str | None = None
    attention: str | None = None
    kv: str = "bf16"
    kv_tokens: Count | None = None
    """Cache of one rank; by default what the weights leave (catalogue engines only)."""
    policy: str = "vllm"
    token_budget: int | None = None
    max_seqs: int | None = None
    long_prefill_tokens: int | None = None
    block_tokens: int | None = None
    watermark_frac: float | None = None
    preemption: Preemption | None = None
    prefix_caching: bool | None = None
    run_ahead: bool | None = None
    """Iterations are formed while the one before runs; by default as the policy does."""
    max_decode_context_tokens: int | None = None
    speculative_tokens: Natural = 0
    acceptance_frac: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the drafted tokens, each given that the ones before it were accepted."""
    prefill_frac: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Throughput of prompts that a power cap leaves, over that without one."""
    decode_frac: Annotated[float, Field(gt=0, le=1)] = 1.0
    cap_w: Watts | None = None
    lora_rank: Natural = 0
    num_adapters: Natural = 0
    role: Role = Role.BOTH
    usd_per_hour: UsdPerHour | None = None
    """Of one device."""
    idle_w: Watts | None = None
    """Of one device, as the next two."""
    prefill_w: Watts | None = None
    decode_w: Watts | None = None
    host_bytes_per_s: BytesPerSecond | None = None
    kv_bytes_per_token: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    link_bytes_per_s: BytesPerSecond | None = None
    """Of the whole engine, for cache transfers."""
    reduce_bytes_per_s: BytesPerSecond | None = None
    """Rate of one device in reductions and expert exchanges; needed by a profile on several devices."""
    reduce_latency_s: Seconds = 2e-5
    host_s: Seconds = 0.0
    """Time per iteration in which the device waits for the host; for profiles."""
    num_sms: Count | None = None
    """Multiprocessors, for what unequal lengths cost; by default the catalogue's for `profile_device`."""
    profile_device: str | None = None
    """Catalogue device on which the profile was taken."""

    def __post_init__(self) -> None:
        if bool(self.speculative_tokens) != bool(self.acceptance_frac):
            message = (
                f"speculative_tokens {self.speculative_tokens} with acceptance_frac "
                f"{self.acceptance_frac:g}; give both, tokens from 1"
            )
            raise ValueError(message)
        if bool(self.lora_rank) != bool(self.num_adapters):
            message = f"num_adapters {self.num_adapters} with lora_rank {self.lora_rank}; give both, from 1"
            raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReactiveEntry:
    """A reactive scaling rule."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    interval_s: Seconds
    add_above: Finite
    remove_below: Finite
    step: Count = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEntry:
    """Identical engines."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    engine: EngineEntry
    count: Count = 1
    min_count: Natural = 1
    max_count: Natural = 0
    schedule: tuple[tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], Natural], ...] = ()
    """Pairs (time in s, wanted engines)."""
    reactive: ReactiveEntry | None = None
    start_up_s: Seconds = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureEntry:
    """One failure."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    pool: str
    engine: Natural
    at_s: Seconds
    down_s: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEntry:
    """A path that all cache transfers share."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    bytes_per_s: BytesPerSecond
    latency_s: Seconds = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFile:
    """The whole file."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    pools: tuple[PoolEntry, ...]
    schema_version: Literal[1] = 1
    router: str = "least-outstanding"
    decode_router: str = "least-kv"
    shares: tuple[tuple[Count, Count, tuple[Annotated[float, Field(ge=0)], ...]], ...] = ()
    shared_link: LinkEntry | None = None
    failures: tuple[FailureEntry, ...] = ()
    mean_time_between_failures_s: Seconds | None = None
    repair_s: Seconds = 600.0
    catalogs: tuple[str, ...] = field(default=())
    """Folders with further devices."""
