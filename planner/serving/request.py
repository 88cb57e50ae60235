"""What is asked of serving: model, devices, workload, latency targets, prices and limits; file or flags."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from costmodels.graph import ModelGraph
from costmodels.job import Slo
from costmodels.models import find_model
from costmodels.serving.engine import EngineStack, find_engine
from hardware.errors import PlannerError, SpecError
from hardware.price_file import OFFER_KINDS, OfferKind
from hardware.schema import read_yaml, validate
from planner.facility import FacilityOption
from planner.serving.day import LoadHours, day_problems
from planner.serving.fields import (
    Count,
    Format,
    KvFormat,
    Natural,
    Percent,
    Positive,
    Share,
    StayForm,
    WholeShare,
)
from planner.serving.models import ModelDemand
from planner.serving.offers import DeviceOffer, device_offers

__all__ = ["ServeRequest", "draft_problems", "generation_problem", "read_serve_request", "resolve_serving"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """One question: the cheapest fleet that serves this workload within these targets."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str | None = None
    """Catalogue name, or path of a Hugging Face config.json."""
    models: tuple[ModelDemand, ...] = ()
    """Several models that share the limits; each with what differs from the rest of the request."""
    gpus: tuple[str, ...] = ()
    """Devices (or node templates) that may be used."""
    cluster: str | None = None
    """In place of `gpus`: all devices of a cluster, by catalogue name or path; no more than it has."""
    nodes: Count | None = None
    """Of the cluster, where its file does not fix them."""
    workload: str | None = None
    """Trace CSV, histogram CSV, a named distribution (azure-conv, azure-code), or fixed:PROMPTxOUTPUT."""
    objective: Literal["cost", "energy", "throughput"] = "cost"
    """Made best: dollars or watts at the given rate, or requests per second within the limits."""
    rate_per_s: Positive | None = None
    """Requests per second; needed where the workload has no arrivals, else the trace is scaled to it."""
    slo_ttft_s: Positive | None = None
    slo_tpot_s: Positive | None = None
    slo_e2e_s: Positive | None = None
    percentile: Percent = 99.0
    """Share of requests, in percent, that must keep every target."""
    every_size: bool = False
    """Every request size must keep the targets at the percentile, not just all requests together."""
    engine: str = "vllm"
    formats: tuple[Format, ...] = ("bf16",)
    """Weight formats whose quality is acceptable; each is tried."""
    kv_formats: tuple[KvFormat, ...] = ("bf16",)
    form: StayForm = "auto"
    """Prompts and decoding on the same instances, on separate ones, or whichever is cheaper."""
    prefix_hit_frac: Share = 0.0
    """Prompt tokens found in the prefix cache."""
    draft_tokens: Natural = 0
    """Tokens drafted per step."""
    accepted_tokens: float = 0.0
    """Drafted tokens accepted per step on average; needed with `draft_tokens`."""
    lora_rank: Natural = 0
    """Rank of low-rank adapters that requests name; 0 is none."""
    num_adapters: Natural = 0
    """Adapters kept in device memory, asked for alike."""
    usd_per_hour: Mapping[str, Positive] = field(default_factory=dict)
    """Price of one device, in place of the price file's offers of it, else of the catalogue's price."""
    provider: str | None = None
    """Of the catalogue's prices; any where left out."""
    region: str | None = None
    spot: bool = False
    """The catalogue's interruptible prices in place of its on-demand ones."""
    prices: str | None = None
    """Price file: several offers per device (on demand, spot, reserved), in place of one price each."""
    offer_kinds: tuple[OfferKind, ...] = OFFER_KINDS
    """Of the price file; others are left aside."""
    max_spot_frac: WholeShare = 1.0
    """Of the instances of every kind, so of the capacity that is lost if all spot is taken back at once."""
    load_levels: tuple[LoadHours, ...] = ()
    """Hours of the day at which share of the peak rate; all day at the peak where left out."""
    max_devices: Mapping[str, Natural] = field(default_factory=dict)
    """Devices of a type that can be had."""
    min_devices: Mapping[str, Natural] = field(default_factory=dict)
    spare_instances: Natural = 0
    """Instances of every kind in use that may fail (N + 1 is 1)."""
    num_zones: Count = 1
    """Zones over which instances are spread; above 1, one may be lost."""
    budget_usd_per_hour: Positive | None = None
    power_budget_w: Positive | None = None
    facility: FacilityOption | None = None
    """The site whose hosts, cooling, electricity and carbon are counted too; null for devices alone."""
    max_devices_per_instance: Count = 8
    simulate: bool = True
    """Check the plan by simulation and add headroom until the targets hold."""
    top: Count = 3
    catalog: tuple[str, ...] = ()

    @property
    def slo(self) -> Slo:
        """The latency targets."""
        return Slo(
            ttft_s=self.slo_ttft_s, tpot_s=self.slo_tpot_s, e2e_s=self.slo_e2e_s, percentile=self.percentile
        )


def read_serve_request(path: str | None, flags: Mapping[str, Any]) -> ServeRequest:
    """Return the request of a file, overridden by the flags that were given (those not None or empty)."""
    given = {key: value for key, value in flags.items() if value is not None and value != ()}
    if path is None:
        return validate(ServeRequest, given, "request")
    return validate(ServeRequest, read_yaml(Path(path)) | given, path)


def resolve_serving(request: ServeRequest) -> tuple[ModelGraph, EngineStack, tuple[DeviceOffer, ...]]:
    """Return the model, engine and devices that a request names, all its problems at once.

    Raises
    ------
    SpecError
        naming every unknown name, missing price and contradiction.
    """
    problems: list[str] = []
    model = engine = None
    try:
        model = find_model(request.model or "")
        if problem := generation_problem(model):
            problems.append(f"model: {problem}")
    except PlannerError as error:
        problems.append(f"model: {error}")
    try:
        engine = find_engine(request.engine)
    except PlannerError as error:
        problems.append(f"engine: {error}")
    try:
        offers = device_offers(request)
    except SpecError as error:
        offers = ()
        problems += error.problems
    problems += _contradictions(request, offers)
    if problems or model is None or engine is None:
        raise SpecError("request", problems)
    return model, engine, offers


def generation_problem(model: ModelGraph) -> str | None:
    """Return why a model cannot be served as a generator of tokens; None for a decoder."""
    if model.kind in ("encoder", "vision", "encoder-decoder"):
        return f"{model.name} is of kind {model.kind}; models that decode token by token can be served"
    return None


def draft_problems(draft_tokens: int, accepted_tokens: float) -> list[str]:
    """Return why drafts and their acceptance do not fit together, in words; empty where they do."""
    if draft_tokens and not 0 < accepted_tokens <= draft_tokens:
        return [
            f"accepted_tokens: {accepted_tokens:g} with draft_tokens {draft_tokens}; "
            "state how many are accepted per step, above 0 and at most draft_tokens"
        ]
    if accepted_tokens and not draft_tokens:
        return [f"draft_tokens: 0 with accepted_tokens {accepted_tokens:g}; give both, drafts from 1"]
    return []


def _contradictions(request: ServeRequest, offers: tuple[DeviceOffer, ...]) -> list[str]:
    names = {offer.device.name for offer in offers}
    problems = [
        f"{key}.{name}: no such device among gpus ({', '.join(sorted(names))})"
        for key in ("usd_per_hour", "max_devices", "min_devices")
        for name in getattr(request, key)
        if offers and name not in names
    ]
    if request.workload is None:
        problems.append(
            "workload: is needed: a trace or histogram CSV, azure-conv, azure-code, fixed:1024x256"
        )
    if not request.slo.targets:
        problems.append("slo_ttft_s, slo_tpot_s, slo_e2e_s: at least one target is needed")
    problems += draft_problems(request.draft_tokens, request.accepted_tokens)
    if bool(request.lora_rank) != bool(request.num_adapters):
        problems.append(
            f"num_adapters: {request.num_adapters} with lora_rank {request.lora_rank}; give both, from 1"
        )
    if len(names) < len(offers):
        problems.append(f"gpus: a device appears twice in {', '.join(request.gpus)}")
    if request.objective == "throughput" and request.budget_usd_per_hour is None:
        free = sorted(o.device.name for o in offers if math.isinf(o.max_devices))
        if free and request.power_budget_w is None:
            problems.append(
                "objective: throughput needs a limit: budget_usd_per_hour, power_budget_w, or max_devices of "
                f"{', '.join(free)}"
            )
    return [*problems, *_purchase_contradictions(request, offers)]


def _purchase_contradictions(request: ServeRequest, offers: tuple[DeviceOffer, ...]) -> list[str]:
    """Return what of prices, quotas and hours does not fit together."""
    problems = day_problems(request.load_levels)
    if request.prices is None:
        problems += [
            f"{key}: needs a price file (prices)"
            for key, none in (("offer_kinds", OFFER_KINDS), ("max_spot_frac", 1.0))
            if getattr(request, key) != none
        ]
    elif request.spot:
        problems.append("spot: with a price file, say offer_kinds: [spot]")
    if request.objective != "cost" and request.load_levels:
        problems.append(f"load_levels: with objective {request.objective}; only cost is summed over a day")
    for offer in offers:
        name = offer.device.name
        most, least = request.max_devices.get(name, math.inf), request.min_devices.get(name, 0)
        if most < least:
            problems.append(f"max_devices.{name}: {most} is below min_devices.{name}, {least}")
        problems += [
            f"max_devices.{name}: {most} is below the {purchase.min_devices} of offer {purchase.name}"
            for purchase in offer.purchases
            if most < purchase.min_devices
        ]
    return problems
