"""Fleets written by hand: a YAML file of pools, engines and rules becomes a `Fleet`."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from hardware.errors import InputError, SpecError
from hardware.schema import read_yaml, validate
from planner.simulate.fleet import EngineSpec, Failure, Fleet, Link, Pool, Reactive, ScheduledCount
from planner.simulate.fleet_entries import EngineEntry, FleetFile, LinkEntry, PoolEntry
from planner.simulate.layer_profile import read_layer_profile
from planner.simulate.routers import ROUTERS
from planner.simulate.settings import POLICIES, EngineSettings, Speculation
from planner.simulate.slowed_timer import capped_engine
from planner.simulate.timing import AffineTimer, StepTimer

__all__ = ["fleet_from_file", "read_fleet"]


def read_fleet(path: str | Path) -> Fleet:
    """Return the fleet that a YAML file describes.

    Raises
    ------
    SpecError
        with every problem of the file at once.
    """
    where = Path(path)
    entry = validate(FleetFile, read_yaml(where), str(where))
    return fleet_from_file(entry, where=str(where), folder=where.parent)


def fleet_from_file(entry: FleetFile, *, where: str = "fleet", folder: Path | None = None) -> Fleet:
    """Return the fleet of a parsed file; profiles are looked for in `folder`."""
    problems = [
        f"{key}: {name!r} is no router (accepted: {', '.join(ROUTERS)})"
        for key, name in (("router", entry.router), ("decode_router", entry.decode_router))
        if name not in ROUTERS
    ]
    pools = []
    for number, pool in enumerate(entry.pools):
        key = f"pools.{number}.engine"
        try:
            engine = _capped(pool.engine, folder or Path(), entry.catalogs)
            key = f"pools.{number}"
            pools.append(_pool(pool, engine))
        except (ValueError, InputError) as error:
            told = error.problems if isinstance(error, SpecError) else (str(error),)
            problems += [f"{key}: {problem}" for problem in told]
    if problems:
        raise SpecError(where, problems)
    try:
        return Fleet(
            pools=tuple(pools),
            router=entry.router,
            decode_router=entry.decode_router,
            shares=entry.shares,
            shared_link=_link(entry.shared_link),
            failures=tuple(
                Failure(pool=f.pool, engine=f.engine, at_s=f.at_s, down_s=f.down_s) for f in entry.failures
            ),
            mean_time_between_failures_s=entry.mean_time_between_failures_s,
            repair_s=entry.repair_s,
        )
    except ValueError as error:
        raise SpecError(where, [str(error)]) from None


def _link(entry: LinkEntry | None) -> Link | None:
    return None if entry is None else Link(bytes_per_s=entry.bytes_per_s, latency_s=entry.latency_s)


def _capped(entry: EngineEntry, folder: Path, catalogs: tuple[str, ...]) -> EngineSpec:
    return capped_engine(
        _engine(entry, folder, catalogs),
        cap_w=entry.cap_w,
        prefill_frac=entry.prefill_frac,
        decode_frac=entry.decode_frac,
    )


def _pool(entry: PoolEntry, engine: EngineSpec) -> Pool:
    rule = entry.reactive
    return Pool(
        name=entry.name,
        engine=engine,
        count=entry.count,
        min_count=entry.min_count,
        max_count=entry.max_count,
        schedule=tuple(ScheduledCount(at_s=at, count=count) for at, count in entry.schedule),
        reactive=None if rule is None else Reactive(**{f.name: getattr(rule, f.name) for f in fields(rule)}),
        start_up_s=entry.start_up_s,
    )


def _settings(entry: EngineEntry) -> EngineSettings:
    if entry.policy not in POLICIES:
        raise SpecError("", [f"policy: {entry.policy!r} is unknown (accepted: {', '.join(POLICIES)})"])
    names = {f.name for f in fields(EngineSettings)} & {f.name for f in fields(EngineEntry)}
    changes: dict[str, Any] = {n: getattr(entry, n) for n in names if getattr(entry, n) is not None}
    if entry.speculative_tokens:
        changes["speculation"] = Speculation(
            num_tokens=entry.speculative_tokens, acceptance_frac=entry.acceptance_frac
        )
    return replace(POLICIES[entry.policy], **changes)


def _engine(entry: EngineEntry, folder: Path, catalogs: tuple[str, ...]) -> EngineSpec:
    sources = [name for name in ("device", "profile", "coefficients") if getattr(entry, name) is not None]
    if len(sources) != 1:
        found = " and ".join(sources) or "none"
        raise SpecError("", [f"exactly one of device, profile and coefficients is needed, found {found}"])
    if sources[0] == "device":
        return _catalogue_engine(entry, catalogs)
    if entry.kv_tokens is None:
        raise SpecError("", ["kv_tokens: is missing (only a catalogue engine can work it out)"])
    timer = _affine(entry) if sources[0] == "coefficients" else _profile_timer(entry, folder, catalogs)
    count = entry.tp * entry.pp * entry.dp
    return EngineSpec(
        timer=timer,
        kv_tokens=entry.kv_tokens,
        settings=_settings(entry),
        role=entry.role,
        num_ranks=entry.dp,
        num_lanes=entry.pp,
        num_devices=count,
        kv_bytes_per_token=entry.kv_bytes_per_token or 0.0,
        usd_per_hour=(entry.usd_per_hour or 0.0) * count,
        idle_w=_times(entry.idle_w, count),
        prefill_w=_times(entry.prefill_w, count),
        decode_w=_times(entry.decode_w, count),
        host_bytes_per_s=entry.host_bytes_per_s,
        link_bytes_per_s=entry.link_bytes_per_s,
    )


def _times(value: float | None, count: int) -> float | None:
    return None if value is None else value * count


def _affine(entry: EngineEntry) -> AffineTimer:
    given = entry.coefficients
    assert given is not None
    return AffineTimer(
        prefill=given.prefill,
        decode_small=given.decode_small,
        decode_large=given.decode_large or given.decode_small,
        large_batch=given.large_batch,
        overhead_s=given.overhead_s,
        overhead_per_token_s=given.overhead_per_token_s,
    )


@cache
def _machine(name: str, catalogs: tuple[str, ...]) -> Any:
    from costmodels.serving.machine import serving_machine
    from hardware.catalog import find_device

    return serving_machine(find_device(name, catalogs=catalogs))


def _catalogue_engine(entry: EngineEntry, catalogs: tuple[str, ...]) -> EngineSpec:
    from costmodels.models import find_model
    from costmodels.serving.config import Quant, ServingConfig
    from costmodels.serving.degrees import degree_problems
    from costmodels.serving.engine import find_engine
    from planner.simulate.engine_spec import catalogue_engine

    if entry.model is None:
        raise SpecError("", ["model: is missing"])
    formats = {q.label: q for q in Quant}
    chosen = {"weights": entry.weights, "kv": entry.kv}
    chosen["experts"] = entry.experts or entry.weights
    chosen["attention"] = entry.attention or entry.weights
    bad = [
        f"{k}: {v!r} is no number format ({', '.join(formats)})"
        for k, v in chosen.items()
        if v not in formats
    ]
    if bad:
        raise SpecError("", bad)
    model, settings = find_model(entry.model), _settings(entry)
    if problems := degree_problems(model, tp=entry.tp, pp=entry.pp, dp=entry.dp, ep=entry.ep):
        raise SpecError("", problems)
    config = ServingConfig(
        tp=entry.tp,
        pp=entry.pp,
        dp=entry.dp,
        ep=entry.ep,
        weights=formats[chosen["weights"]],
        experts=formats[chosen["experts"]],
        attention=formats[chosen["attention"]],
        kv=formats[entry.kv],
        max_batch=settings.max_seqs,
        token_budget=min(settings.token_budget, 65536),
        draft_tokens=entry.speculative_tokens,
        lora_rank=entry.lora_rank,
        num_adapters=entry.num_adapters,
    )
    assert entry.device is not None
    return catalogue_engine(
        model,
        config,
        find_engine(entry.stack),
        _machine(entry.device, catalogs),
        settings=settings,
        role=entry.role,
        kv_tokens=entry.kv_tokens,
        usd_per_hour=entry.usd_per_hour,
        link_bytes_per_s=entry.link_bytes_per_s,
    )


def _profile_timer(entry: EngineEntry, folder: Path, catalogs: tuple[str, ...]) -> StepTimer:
    from planner.simulate.profiled_engine import measured_timer

    if entry.model is None:
        raise SpecError("", ["model: is missing (the profile holds one layer; the model says how many)"])
    from costmodels.models import find_model

    assert entry.profile is not None
    num_sms = entry.num_sms
    if num_sms is None and entry.profile_device is not None:
        num_sms = _machine(entry.profile_device, catalogs).device.num_sms
    return measured_timer(
        read_layer_profile(folder / entry.profile),
        find_model(entry.model),
        tp=entry.tp,
        dp=entry.dp,
        ep=entry.ep,
        link_bytes_per_s=entry.reduce_bytes_per_s,
        link_latency_s=entry.reduce_latency_s,
        num_sms=num_sms,
        host_s=entry.host_s,
        token_budget=_settings(entry).token_budget,
    )
