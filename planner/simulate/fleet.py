"""A fleet as values: pools of identical engines, how requests reach them, what fails and what scales."""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.simulate.settings import EngineSettings, Role
from planner.simulate.timing import StepTimer

__all__ = ["EngineSpec", "Failure", "Fleet", "Link", "Pool", "Reactive", "ScheduledCount"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine: a model on some devices with its settings and iteration times."""

    timer: StepTimer = field(compare=False)
    kv_tokens: int
    """Cache capacity of one rank, in tokens."""
    settings: EngineSettings = field(default_factory=EngineSettings)
    role: Role = Role.BOTH
    num_ranks: int = 1
    """Data-parallel ranks that step together (expert parallelism over attention replicas)."""
    num_lanes: int = 1
    """Batches in flight of a pipeline; each lane has an equal part of the cache and the sequences."""
    num_devices: int = 1
    kv_bytes_per_token: float = 0.0
    usd_per_hour: float = 0.0
    """Of the whole engine."""
    idle_w: float | None = None
    """Of the whole engine."""
    prefill_w: float | None = None
    decode_w: float | None = None
    host_bytes_per_s: float | None = None
    """Rate of swapping the cache to host memory, one way."""
    link_bytes_per_s: float | None = None
    """Rate at which the engine sends or receives cache, one way."""
    link_latency_s: float = 0.0
    admission_s: float = 0.0
    """From arrival to the scheduler and from token to client: server and tokenizer."""

    def __post_init__(self) -> None:
        for name in ("kv_tokens", "num_ranks", "num_lanes", "num_devices"):
            if getattr(self, name) < 1:
                message = f"{name} must be at least 1, not {getattr(self, name)}"
                raise ValueError(message)
        if self.num_ranks > 1 and self.num_lanes > 1:
            message = "an engine has either ranks in lockstep or pipeline lanes, not both"
            raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledCount:
    """From `at_s` on, `count` engines are wanted."""

    at_s: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reactive:
    """Every `interval_s`, one engine is added or removed for outstanding requests per engine."""

    interval_s: float
    add_above: float
    remove_below: float
    step: int = 1

    def __post_init__(self) -> None:
        if self.interval_s <= 0.0 or self.remove_below >= self.add_above or self.step < 1:
            message = "a reactive rule needs interval_s above 0, remove_below under add_above, step from 1"
            raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """`count` engines of one kind; with a scaling rule, the number at the start."""

    name: str
    engine: EngineSpec
    count: int
    min_count: int = 1
    max_count: int = 0
    """Largest number under a scaling rule; 0 is `count`."""
    schedule: tuple[ScheduledCount, ...] = ()
    reactive: Reactive | None = None
    start_up_s: float = 0.0
    """From the decision to the first request: machine, weights, compilation."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.min_count < 0:
            message = f"pool {self.name}: count must be at least 1 and min_count not negative"
            raise ValueError(message)
        times = [wanted.at_s for wanted in self.schedule]
        if times != sorted(set(times)):
            message = f"pool {self.name}: the times of schedule must rise"
            raise ValueError(message)
        if self.reactive is not None and self.min_count > self.num_engines:
            message = f"pool {self.name}: min_count {self.min_count} is above max_count {self.num_engines}"
            raise ValueError(message)

    @property
    def num_engines(self) -> int:
        """The most engines that can ever run."""
        return max(self.count, self.max_count, *(s.count for s in self.schedule), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The engine `engine` of pool `pool` stops at `at_s`, loses its state and is back `down_s` later."""

    pool: str
    engine: int
    at_s: float
    down_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A shared path of cache transfers between pools, on top of the engines' own links."""

    bytes_per_s: float
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Pools and the rules that send requests to them."""

    pools: tuple[Pool, ...]
    router: str = "least-outstanding"
    decode_router: str = "least-kv"
    shares: tuple[tuple[int, int, tuple[float, ...]], ...] = ()
    """For the router "size": rows (prompt tokens up to, output tokens up to, share per pool), first match."""
    shared_link: Link | None = None
    failures: tuple[Failure, ...] = ()
    mean_time_between_failures_s: float | None = None
    """Of one engine; failures are drawn at random on top of `failures`."""
    repair_s: float = 600.0
    """Time that a randomly failed engine is away."""

    def __post_init__(self) -> None:
        if not self.pools:
            message = "a fleet needs at least one pool"
            raise ValueError(message)
        roles = {pool.engine.role for pool in self.pools}
        if (Role.PREFILL in roles) != (Role.DECODE in roles):
            message = "prefill and decode pools only come together"
            raise ValueError(message)
        names = [pool.name for pool in self.pools]
        if len(set(names)) != len(names):
            message = f"pool names must differ: {', '.join(names)}"
            raise ValueError(message)

        self._check_shares()
        if self.mean_time_between_failures_s is not None and not self.mean_time_between_failures_s > 0.0:
            message = (
                f"mean_time_between_failures_s must be above 0, not {self.mean_time_between_failures_s:g}"
            )
            raise ValueError(message)

    def _check_shares(self) -> None:
        if (self.router == "size") != bool(self.shares):
            message = (
                f"router {self.router} with {len(self.shares)} rows of shares; router size has them, no other"
            )
            raise ValueError(message)
        for row, (_, _, share) in enumerate(self.shares):
            if len(share) != len(self.pools) or min(share) < 0.0 or sum(share) <= 0.0:
                told = ", ".join(f"{each:g}" for each in share)
                message = (
                    f"shares.{row}: {told or 'nothing'}; one for each of {len(self.pools)} pools, not all 0"
                )
                raise ValueError(message)

    @property
    def num_devices(self) -> int:
        """Devices of the starting fleet."""
        return sum(pool.count * pool.engine.num_devices for pool in self.pools)
