"""What differs between two serving plans: instances, where requests go, and what each figure becomes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.serving.plan import ServingPlan
from planner.training.compare import Change

__all__ = ["ServingComparison", "compare_serving"]

_FIGURES = (
    "cost_usd_per_hour",
    "cost_usd_per_million_tokens",
    "num_devices",
    "requests_per_s",
    "throughput_tokens_per_s",
    "ttft_s",
    "tpot_s",
    "watts",
    "joules_per_token",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingComparison:
    """Two fleets side by side."""

    form: tuple[str, str]
    engine: tuple[str, str]
    instances: Mapping[str, tuple[int, int]]
    """Kinds of instances whose count differs, with both counts."""
    devices: Mapping[str, tuple[int, int]]
    """Types of devices whose number differs."""
    figures: tuple[Change, ...]
    """Predictions that both plans have."""
    simulated: tuple[Change, ...]
    """Latencies and attainment of the replays, where both plans were replayed."""
    asked: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Keys of the requests that differ: the plans answer different questions."""


def compare_serving(
    first: ServingPlan, second: ServingPlan, *, asked: Mapping[str, tuple[str, str]] | None = None
) -> ServingComparison:
    """Return how `second` differs from `first`; `asked` is what differs in their requests."""
    a, b = first.predicted, second.predicted
    figures = [(n, getattr(a, n), getattr(b, n)) for n in _FIGURES]
    replays = []
    if a.simulated is not None and b.simulated is not None:
        names = ("ttft_s", "tpot_s", "attainment_frac")
        replays = [(n, getattr(a.simulated, n), getattr(b.simulated, n)) for n in names]
    return ServingComparison(
        form=(first.strategy.form, second.strategy.form),
        engine=(first.strategy.engine, second.strategy.engine),
        instances=_differing(first.strategy.instances, second.strategy.instances),
        devices=_differing(_devices(first), _devices(second)),
        figures=_changes(figures),
        simulated=_changes(replays),
        asked=asked or {},
    )


def _differing(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    pairs = {n: (first.get(n, 0), second.get(n, 0)) for n in dict.fromkeys([*first, *second])}
    return {n: pair for n, pair in pairs.items() if pair[0] != pair[1]}


def _devices(plan: ServingPlan) -> dict[str, int]:
    total: dict[str, int] = {}
    for entry in plan.mix:
        total[entry.device] = total.get(entry.device, 0) + entry.count * entry.devices_per_instance
    return total


def _changes(rows: list[tuple[str, float | None, float | None]]) -> tuple[Change, ...]:
    known = [(n, x, y) for n, x, y in rows if x is not None and y is not None]
    return tuple(Change(name=n, first=float(x), second=float(y)) for n, x, y in known)
