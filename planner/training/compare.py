"""What differs between two training plans, and what each difference costs; reading one plan of a file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from costmodels.strategy import Recompute, Strategy
from hardware.errors import InputError
from planner.plan import TrainingPlan
from planner.plan_io import read_plan

__all__ = ["Change", "Comparison", "asked_differently", "compare_plans", "read_one_plan", "value_words"]

COMPARED = ("train", "serve")
_FIGURES = ("tokens_per_s_per_device", "watts_per_device", "energy_j", "cost_usd")
_OUTPUT_KEYS = ("top",)
"""Keys of a request that change what is listed, not what is asked."""
_NUMBERED = re.compile(r"(.+)#(\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure in both plans, second minus first."""

    name: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        """What the second plan adds."""
        return self.second - self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two plans side by side; changes are largest first."""

    decisions: Mapping[str, tuple[str, str]]
    """Columns of the strategy that differ, as words."""
    step_s: Change
    time_parts_s: tuple[Change, ...]
    peak_memory_bytes: Change
    memory_parts_bytes: tuple[Change, ...]
    fits_probability: Change
    tokens_per_s_per_device: Change
    figures: tuple[Change, ...]
    """Throughput, watts, joules and dollars, where both plans have them."""
    asked: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Keys of the requests that differ: the plans answer different questions."""

    @property
    def intervals_overlap(self) -> bool:
        """Whether the prediction cannot tell the two apart: the step differs by less than its spread."""
        return abs(self.step_s.difference) < self.spread_s

    spread_s: float
    """Half width of the wider 90 % interval."""


def value_words(name: str, value: object) -> str:
    """Return one decision as words: recompute by name, switches as on and off."""
    if isinstance(value, Recompute):
        return value.name.lower()
    if isinstance(value, bool):
        return "on" if value else "off"
    if name == "shard_group" and value == 0:
        return "all replicas"
    return str(value)


def _decisions(first: Strategy, second: Strategy) -> dict[str, tuple[str, str]]:
    pairs = {f.name: (getattr(first, f.name), getattr(second, f.name)) for f in fields(Strategy)}
    return {n: (value_words(n, a), value_words(n, b)) for n, (a, b) in pairs.items() if a != b}


def _changes(first: Mapping[str, float], second: Mapping[str, float]) -> tuple[Change, ...]:
    names = list(dict.fromkeys([*first, *second]))
    found = [Change(name=n, first=first.get(n, 0.0), second=second.get(n, 0.0)) for n in names]
    return tuple(sorted(found, key=lambda c: (-abs(c.difference), c.name)))


def asked_differently(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the keys in which two requests differ, with both values as words."""
    names = [n for n in dict.fromkeys([*first, *second]) if n not in _OUTPUT_KEYS]
    pairs = {n: (first.get(n), second.get(n)) for n in names}
    return {n: (_asked_words(a), _asked_words(b)) for n, (a, b) in pairs.items() if a != b}


def _asked_words(value: object) -> str:
    return "-" if value is None or value == {} or value == [] else str(value)


def compare_plans(
    first: TrainingPlan, second: TrainingPlan, *, asked: Mapping[str, tuple[str, str]] | None = None
) -> Comparison:
    """Return how `second` differs from `first`; `asked` is what differs in their requests."""
    a, b = first.predicted, second.predicted

    def change(name: str) -> Change:
        return Change(name=name, first=getattr(a, name), second=getattr(b, name))

    return Comparison(
        decisions=_decisions(first.strategy, second.strategy),
        step_s=change("step_s"),
        time_parts_s=_changes(a.time_parts_s, b.time_parts_s),
        peak_memory_bytes=change("peak_memory_bytes"),
        memory_parts_bytes=_changes(a.memory_parts_bytes, b.memory_parts_bytes),
        fits_probability=change("fits_probability"),
        tokens_per_s_per_device=change("tokens_per_s_per_device"),
        figures=tuple(change(n) for n in _FIGURES if None not in (getattr(a, n), getattr(b, n))),
        asked=asked or {},
        spread_s=max((p.step_high_s - p.step_low_s) / 2 for p in (a, b)),
    )


def read_one_plan(where: str) -> tuple[str, Any, Mapping[str, Any]]:
    """Return kind, plan and request that `where` names: a file's best, or its N-th as ``plan.json#N``.

    Raises
    ------
    InputError
        if the file has no such plan or is of a kind that is not compared.
    """
    match = _NUMBERED.match(where)
    path, number = (match.group(1), int(match.group(2))) if match and not Path(where).exists() else (where, 1)
    file = read_plan(path)
    if file.kind not in COMPARED:
        message = f"{path}: kind: {file.kind!r}; only {' and '.join(COMPARED)} plans can be compared"
        raise InputError(message)
    if not 1 <= number <= len(file.plans):
        message = f"{path}: there is no plan #{number}; it holds #1 to #{len(file.plans)}"
        raise InputError(message)
    return file.kind, file.plans[number - 1], file.request
