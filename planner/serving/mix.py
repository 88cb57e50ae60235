"""From the kinds of instances of one or several models to the program that chooses how many of each."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from costmodels.graph import ModelGraph
from costmodels.serving.engine import EngineStack
from hardware.errors import InfeasibleError, SpecError
from planner.serving.items import Item, ItemSearch, Role
from planner.serving.offers import DeviceOffer
from planner.serving.request import ServeRequest
from planner.workload import Buckets, Workload
from solvers.gpu_mix import Limit, MixProblem, MixSolution, best_single

__all__ = [
    "Demand",
    "Fleet",
    "Form",
    "Headrooms",
    "Slot",
    "fleet_of",
    "instance_watts",
    "left_after_losses",
    "mix_problem",
    "single_usd_per_hour",
]

Floats = npt.NDArray[np.float64]
Form = Literal["joint", "split"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Demand:
    """One model with its traffic, its targets and the instances that could serve it."""

    request: ServeRequest
    model: ModelGraph
    engine: EngineStack
    workload: Workload
    buckets: Buckets
    search: ItemSearch
    offers: tuple[DeviceOffer, ...]

    @property
    def name(self) -> str:
        """The model's name as it was asked for."""
        return str(self.request.model)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slot:
    """The part of a fleet that serves one demand: which rows and columns of the program are its own."""

    demand: Demand
    form: Form
    items: slice
    buckets: tuple[slice, ...]
    """One per role."""

    @property
    def roles(self) -> tuple[Role, ...]:
        """Of its instances, in the order of `buckets`."""
        return ("both",) if self.form == "joint" else ("prefill", "decode")


Headrooms = tuple[tuple[float, ...], ...]
"""Capacity beyond the load, by demand and role."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fleet:
    """All kinds of instances that may be mixed, demand by demand."""

    slots: tuple[Slot, ...]
    items: tuple[Item, ...]
    item_names: tuple[str, ...]
    bucket_names: tuple[str, ...]


def fleet_of(demands: tuple[Demand, ...], forms: tuple[Form, ...]) -> Fleet:
    """Return the candidates of every demand in its form.

    Raises
    ------
    InfeasibleError
        if a demand has no instance that keeps its targets for any size.
    """
    slots: list[Slot] = []
    items: list[Item] = []
    names: list[str] = []
    buckets: list[str] = []
    several = len(demands) > 1
    prefix = {"both": "", "prefill": "prefill ", "decode": "decode "}
    for demand, form in zip(demands, forms, strict=True):
        roles = ("both",) if form == "joint" else ("prefill", "decode")
        mine = [item for item in demand.search.items if item.role in roles]
        if not mine:
            whose = f"{demand.name}: " if several else ""
            message = (
                f"{whose}no device has a configuration that keeps the latency targets for any request size"
            )
            raise InfeasibleError(message, demand.buckets.names)
        spans = []
        for role in roles:
            begin = len(buckets)
            whose = f"{demand.name} " if several else ""
            buckets += [f"{whose}{prefix[role]}{name}" for name in demand.buckets.names]
            spans.append(slice(begin, len(buckets)))
        slots.append(
            Slot(
                demand=demand,
                form=form,
                items=slice(len(items), len(items) + len(mine)),
                buckets=tuple(spans),
            )
        )
        items += mine
        names += [f"{demand.name}-{item.name}" if several else item.name for item in mine]
    return Fleet(slots=tuple(slots), items=tuple(items), item_names=tuple(names), bucket_names=tuple(buckets))


def mix_problem(request: ServeRequest, fleet: Fleet, headrooms: Headrooms) -> MixProblem:
    """Return the program: one set of buckets per demand and role, limits over everything together."""
    load = np.full((len(fleet.items), len(fleet.bucket_names)), np.inf)
    for slot, of_roles in zip(fleet.slots, headrooms, strict=True):
        for role, span, headroom in zip(slot.roles, slot.buckets, of_roles, strict=True):
            rate = slot.demand.buckets.rate_per_s * (1.0 + headroom)
            for i in range(slot.items.start, slot.items.stop):
                item = fleet.items[i]
                if item.role == role:
                    with np.errstate(divide="ignore"):
                        load[i, span] = rate / item.rate_per_s
    num_items = len(fleet.items)
    return MixProblem(
        item_names=fleet.item_names,
        bucket_names=fleet.bucket_names,
        usd_per_hour=np.array([item.usd_per_hour for item in fleet.items]),
        load=load,
        spare=np.full(num_items, request.spare_instances) if request.spare_instances else None,
        num_zones=request.num_zones,
        limits=_limits(request, fleet.items),
        weight=_watts_of(fleet.items, "objective: energy") if request.objective == "energy" else None,
    )


def left_after_losses(request: ServeRequest, solution: MixSolution) -> npt.NDArray[np.int64]:
    """Return the instances that are left when spares, the fullest zone and interrupted ones are lost."""
    count = solution.count
    zone = -(-count // request.num_zones) if request.num_zones > 1 else 0
    away = 0 if solution.away is None else solution.away
    left: npt.NDArray[np.int64] = np.maximum(
        count - zone - away - np.where(count > 0, request.spare_instances, 0), 0
    )
    return left


def single_usd_per_hour(fleet: Fleet, problem: MixProblem) -> float:
    """Return the cost of one kind of instance per demand and role; infinite where none serves every size."""
    return sum(best_single(problem, span) for slot in fleet.slots for span in slot.buckets)


def instance_watts(item: Item) -> float | None:
    """Return mean watts of one instance under load; None where rated power is unknown."""
    return None if item.draw is None else item.draw.watts * item.config.num_devices


def _watts_of(items: tuple[Item, ...], key: str) -> Floats:
    unknown = sorted({i.offer.device.name for i in items if instance_watts(i) is None})
    if unknown:
        raise SpecError("request", [f"{key}: the rated power of {', '.join(unknown)} is not known (tdp_w)"])
    return np.array([instance_watts(item) for item in items], dtype=float)


def _limits(request: ServeRequest, items: tuple[Item, ...]) -> tuple[Limit, ...]:
    """Return stock and minimum per device, budget and power as rows."""
    limits: list[Limit] = []
    devices = np.array([item.config.num_devices for item in items], dtype=float)
    for name in dict.fromkeys(item.offer.device.name for item in items):
        offer = next(item.offer for item in items if item.offer.device.name == name)
        mine = np.array([item.offer.device.name == name for item in items])
        if math.isfinite(offer.max_devices):
            limits.append(
                Limit(name=f"max_devices.{name}", per_instance=devices * mine, total=offer.max_devices)
            )
        if offer.min_devices:
            limits.append(
                Limit(
                    name=f"min_devices.{name}", per_instance=-devices * mine, total=-float(offer.min_devices)
                )
            )
    if request.budget_usd_per_hour is not None and not any(item.offer.purchases for item in items):
        cost = np.array([item.usd_per_hour for item in items])
        limits.append(Limit(name="budget_usd_per_hour", per_instance=cost, total=request.budget_usd_per_hour))
    if request.power_budget_w is not None:
        watts = _watts_of(items, "power_budget_w")
        limits.append(Limit(name="power_budget_w", per_instance=watts, total=request.power_budget_w))
    return tuple(limits)
