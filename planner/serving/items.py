"""Kinds of instances that may enter the mix: configurations and capacities, the useless ones dropped."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from costmodels.graph import ModelGraph
from costmodels.power.draw import device_power
from costmodels.power.engine import EngineDraw, engine_draw
from costmodels.serving.config import ServingConfig, ServingTable
from costmodels.serving.engine import EngineStack
from costmodels.serving.machine import device_machine
from costmodels.serving.operators import ServingMachine
from planner.plan import Excluded
from planner.serving.capacity import (
    Capacity,
    GridTimes,
    bound_words,
    grid_times,
    joint_capacity,
    prefill_capacity,
    split_capacity,
)
from planner.serving.caps import PowerCap, power_caps
from planner.serving.offers import DeviceOffer
from planner.serving.request import ServeRequest
from planner.serving.space import serving_space
from planner.workload import Buckets

__all__ = ["Item", "ItemSearch", "Role", "find_items"]

Floats = npt.NDArray[np.float64]
Role = Literal["both", "prefill", "decode"]

_MAX_ITEMS_PER_DEVICE = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """One kind of instance with what it sustains per bucket."""

    offer: DeviceOffer
    config: ServingConfig
    role: Role
    rate_per_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    draw: EngineDraw | None = None
    """Of one busy device; None where its rated power is not known."""
    cap: PowerCap | None = None

    @property
    def usd_per_hour(self) -> float:
        """Of one instance."""
        return self.offer.usd_per_hour * self.config.num_devices

    @property
    def name(self) -> str:
        """Unique among the items of one plan."""
        c = self.config
        degrees = (
            f"tp{c.tp}"
            + (f"-pp{c.pp}" if c.pp > 1 else "")
            + (f"-dp{c.dp}" if c.dp > 1 else "")
            + (f"-ep{c.ep}" if c.ep > 1 else "")
        )
        kv = "" if c.kv.label == "bf16" else f"-kv-{c.kv.label}"
        role = "" if self.role == "both" else f"{self.role}-"
        cap = "" if self.cap is None else f"-cap{self.cap.cap_w:.0f}w"
        return f"{role}{self.offer.device.name}-{degrees}-{c.experts.label}{kv}{cap}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemSearch:
    """Items per role and what was searched."""

    items: tuple[Item, ...]
    num_configs: int
    num_feasible: int
    excluded: tuple[Excluded, ...]
    bounds: tuple[str, ...]
    """Per device, how the lowest possible latencies stand against the targets."""


def find_items(
    request: ServeRequest,
    model: ModelGraph,
    engine: EngineStack,
    offers: tuple[DeviceOffer, ...],
    buckets: Buckets,
    *,
    arrival_cv: float,
    prefix_hit_frac: float,
) -> ItemSearch:
    """Return the instances worth mixing on every device, for every role that the request's form allows."""
    items: list[Item] = []
    excluded: list[Excluded] = []
    bounds: list[str] = []
    num_configs = num_feasible = 0
    longest = float((buckets.prompt_tokens + buckets.output_tokens).max())
    for offer in offers:
        machine = device_machine(offer.device, offer.levels)
        space = serving_space(
            model,
            offer.device,
            offer.levels,
            engine,
            formats=request.formats,
            kv_formats=request.kv_formats,
            max_devices=int(min(request.max_devices_per_instance, offer.largest_instance)),
            longest_request=longest,
            draft_tokens=request.draft_tokens,
            lora=(request.lora_rank, request.num_adapters),
        )
        num_configs += space.num_configs
        num_feasible += len(space.table)
        excluded += [replace(e, rule=f"{offer.device.name}: {e.rule}") for e in space.excluded]
        if len(space.table) == 0:
            continue
        times = grid_times(model, space.table, engine, machine, buckets, prefix_hit_frac=prefix_hit_frac)
        for cap in _caps(request, offer):
            for role, capacity in _capacities(
                request,
                model,
                engine,
                machine,
                space.table,
                buckets,
                times=_slowed(times, cap),
                arrival_cv=arrival_cv,
                hits=prefix_hit_frac,
            ):
                usable = _worth_mixing(_rows(offer, space.table, role, capacity, cap))
                items += [replace(i, draw=item_draw(i, model, buckets)) for i in usable]
                if cap is None and (role == "both" or (role == "decode" and request.form == "split")):
                    bounds.append(f"{offer.device.name}: {bound_words(capacity, request.slo)}")
    return ItemSearch(
        items=tuple(items),
        num_configs=num_configs,
        num_feasible=num_feasible,
        excluded=tuple(excluded),
        bounds=tuple(bounds),
    )


def _capacities(
    request: ServeRequest,
    model: ModelGraph,
    engine: EngineStack,
    machine: ServingMachine,
    table: ServingTable,
    buckets: Buckets,
    *,
    times: GridTimes,
    arrival_cv: float,
    hits: float,
) -> list[tuple[Role, Capacity]]:
    """Return the capacity of every configuration in every role that the request's form allows."""
    steps = 1.0 + request.accepted_tokens
    args = (model, table, engine, machine, buckets, request.slo)
    found: list[tuple[Role, Capacity]] = []
    if request.form != "split":
        joint = joint_capacity(
            *args, times=times, arrival_cv=arrival_cv, prefix_hit_frac=hits, tokens_per_step=steps
        )
        found.append(("both", joint))
    if request.form != "joint":
        prompts = prefill_capacity(*args, times=times, arrival_cv=arrival_cv, prefix_hit_frac=hits)
        found.append(("prefill", prompts))
        found.append(("decode", split_capacity(*args, times=times, tokens_per_step=steps)))
    return found


def _rows(
    offer: DeviceOffer, table: ServingTable, role: Role, capacity: Capacity, cap: PowerCap | None
) -> list[Item]:
    """Return every configuration of one device, in one role and under one cap, as an item."""
    return [
        Item(
            offer=offer,
            config=table.config(row),
            role=role,
            rate_per_s=capacity.rate_per_s[row],
            ttft_s=capacity.ttft_s[row],
            tpot_s=capacity.tpot_s[row],
            cap=cap,
        )
        for row in range(len(table))
    ]


def _caps(request: ServeRequest, offer: DeviceOffer) -> tuple[PowerCap | None, ...]:
    """Return no cap, and where watts count, the caps that are worth trying."""
    if request.power_budget_w is None and request.objective != "energy":
        return (None,)
    return (None, *power_caps(offer.device))


def _slowed(times: GridTimes, cap: PowerCap | None) -> GridTimes:
    """Return iteration times under a cap."""
    if cap is None:
        return times
    return replace(
        times, decode_s=times.decode_s / cap.decode_frac, prefill_s=times.prefill_s / cap.prefill_frac
    )


def _worth_mixing(items: list[Item]) -> list[Item]:
    """Return items that no other of the same device beats in every bucket, the most often best first."""
    alive = [item for item in items if item.rate_per_s.any()]
    if not alive:
        return []
    dollars = np.array([item.usd_per_hour for item in alive])[:, None]
    value = np.stack([item.rate_per_s for item in alive]) / dollars
    kept = []
    for i, item in enumerate(alive):
        better = (value >= value[i] - 1e-15).all(axis=1) & (dollars[:, 0] <= item.usd_per_hour)
        strictly = (value > value[i] + 1e-15).any(axis=1) | (dollars[:, 0] < item.usd_per_hour)
        tie = better & ~strictly & (np.arange(len(alive)) < i)
        if not (better & strictly).any() and not tie.any():
            kept.append(i)
    kept.sort(key=lambda i: -float(value[i].sum()))
    return [alive[i] for i in kept[:_MAX_ITEMS_PER_DEVICE]]


def item_draw(item: Item, model: ModelGraph, buckets: Buckets, *, load: float = 1.0) -> EngineDraw | None:
    """Return the mean draw of a device of an instance in the bucket that fills it most.

    Requests in flight are arrivals times the time that each stays (Little's law). An instance for prompts
    only rests when none is there; another decodes what is in flight, and rests where that is less than one.
    No device draws more than its cap.

    Parameters
    ----------
    load : arrivals over what the instance can take.
    """
    device = item.offer.device
    if device.tdp_w is None:
        return None
    served = (item.rate_per_s > 0) & np.isfinite(item.rate_per_s)
    stay_s = np.where(served, item.ttft_s + buckets.output_tokens * item.tpot_s, 0.0)
    full = np.where(served, item.rate_per_s, 0.0) * np.where(np.isfinite(stay_s), stay_s, 0.0)
    flight = float(full.max(initial=1.0)) * load
    draw = engine_draw(
        model,
        device,
        item.role,
        num_devices=item.config.num_devices,
        weight_bytes=item.config.experts.bytes_per_weight,
        batch=max(flight, 1.0),
        prompt_tokens=float(np.average(buckets.prompt_tokens, weights=buckets.rate_per_s)),
        output_tokens=float(np.average(buckets.output_tokens, weights=buckets.rate_per_s)),
    )
    most_w = draw.watts if item.cap is None else min(draw.watts, item.cap.cap_w)
    busy = min(load if item.role == "prefill" else flight, 1.0)
    return replace(draw, watts=busy * most_w + (1.0 - busy) * device_power(device).blocked_w)
