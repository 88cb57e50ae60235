"""Engines from the catalogue: iteration times, cache size, price and watts of a model on a device."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from costmodels.graph import Attention, ModelGraph
from costmodels.serving.config import ServingConfig, ServingTable
from costmodels.serving.iteration import iteration_s
from costmodels.serving.memory import kv_bytes_per_request, kv_transfer_bytes, serving_memory
from hardware.errors import InfeasibleError, OutOfDomainError
from hardware.pricing import device_price
from planner.simulate.fleet import EngineSpec
from planner.simulate.settings import Batching, EngineSettings, Role
from planner.simulate.timing import GridTimer, Skew

if TYPE_CHECKING:
    from costmodels.serving.engine import EngineStack
    from costmodels.serving.operators import ServingMachine

__all__ = ["catalogue_engine", "catalogue_timer", "device_watts"]

Floats = npt.NDArray[np.float64]

_PREFILL_TDP_FRAC = 1.0
_DECODE_TDP_FRAC = 0.58
_IDLE_TDP_FRAC = 0.13
"""Splitwise's node constants, means of its A100 and H100 (63/250/400 W of 400, 75/380/700 W of 700)."""
_SIZING_CONTEXT_TOKENS = 4096.0


def catalogue_timer(
    model: ModelGraph, config: ServingConfig, engine: EngineStack, machine: ServingMachine
) -> GridTimer:
    """Return the iteration times of the serving cost model for one configuration."""

    def seconds(prompt: Floats, context: Floats, num_seqs: Floats, kv_tokens: Floats) -> Floats:
        return iteration_s(model, config, engine, machine, prompt, context, num_seqs, kv_tokens)

    attention = next((op for b in model.blocks for op in b.operators if isinstance(op, Attention)), None)
    skew = None
    if attention is not None and attention.kv_latent_dim is None and machine.device.num_sms:
        skew = Skew(
            num_sms=machine.device.num_sms,
            num_heads=max(attention.num_heads // config.tp, 1),
            num_kv_heads=max(attention.num_kv_heads // config.tp, 1),
        )
    return GridTimer(seconds, max_prefill_tokens=config.token_budget, skew=skew)


def catalogue_engine(
    model: ModelGraph,
    config: ServingConfig,
    engine: EngineStack,
    machine: ServingMachine,
    *,
    settings: EngineSettings | None = None,
    role: Role = Role.BOTH,
    kv_tokens: int | None = None,
    usd_per_hour: float | None = None,
    link_bytes_per_s: float | None = None,
) -> EngineSpec:
    """Return an engine of `model` on `machine` with the configuration's degrees and number formats.

    Parameters
    ----------
    settings : scheduling; by default the configuration's batch, budget and chunking.
    kv_tokens : cache of one attention group; by default what the weights leave.
    usd_per_hour : of one device; by default the catalogue's price, or zero where it has none.
    link_bytes_per_s : rate of cache transfers of the whole engine; by default the outer level's per device.

    Raises
    ------
    InfeasibleError
        if the weights leave no memory for a cache.
    """
    table = ServingTable.from_configs([config])
    device = machine.device
    each = float(
        kv_bytes_per_request(model, table, np.array([_SIZING_CONTEXT_TOKENS]), engine.block_tokens)[0]
    )
    if kv_tokens is None:
        kv_tokens = _kv_tokens(model, table, engine, machine, each / _SIZING_CONTEXT_TOKENS)
    if usd_per_hour is None:
        usd_per_hour = _catalogue_price(machine)
    idle_w, prefill_w, decode_w = device_watts(machine)
    count = config.num_devices
    moved = float(kv_transfer_bytes(model, table, np.array([_SIZING_CONTEXT_TOKENS]))[0])
    outer = machine.levels[-1]
    return EngineSpec(
        timer=catalogue_timer(model, config, engine, machine),
        kv_tokens=kv_tokens,
        settings=settings or settings_of(config, engine),
        role=role,
        num_ranks=config.dp,
        num_lanes=config.pp if config.dp == 1 else 1,
        num_devices=count,
        kv_bytes_per_token=moved / _SIZING_CONTEXT_TOKENS,
        usd_per_hour=usd_per_hour * count,
        idle_w=None if idle_w is None else idle_w * count,
        prefill_w=None if prefill_w is None else prefill_w * count,
        decode_w=None if decode_w is None else decode_w * count,
        host_bytes_per_s=(device.pcie_bytes_per_s or 0.0) * count or None,
        link_bytes_per_s=link_bytes_per_s or outer.bytes_per_s * count,
        link_latency_s=outer.latency_s,
        admission_s=engine.admission_s,
    )


def _kv_tokens(
    model: ModelGraph,
    table: ServingTable,
    engine: EngineStack,
    machine: ServingMachine,
    bytes_per_token: float,
) -> int:
    """Return the tokens of cache that the weights leave on each device of one attention group."""
    device = machine.device
    memory = serving_memory(
        model,
        table,
        device_bytes=device.memory_bytes,
        memory_frac=engine.memory_frac,
        reserve_bytes=engine.reserve_bytes,
    )
    tokens = int(memory.kv_budget_bytes[0] / bytes_per_token)
    if tokens < engine.block_tokens:
        need, have = float(memory.weights_bytes[0]) / 1e9, device.memory_bytes / 1e9
        message = (
            f"{model.name} leaves no cache on {device.name} at tp {table.tp[0]}, pp {table.pp[0]}: "
            f"the weights take {need:.1f} GB per device of {have:.0f} GB"
        )
        raise InfeasibleError(message, ("memory",))
    return tokens


def settings_of(config: ServingConfig, engine: EngineStack) -> EngineSettings:
    """Return the scheduling that a serving configuration describes."""
    step_tokens = 1 + config.draft_tokens
    budget = max(config.token_budget, config.max_batch * step_tokens)
    chosen = EngineSettings(
        token_budget=budget, max_seqs=config.max_batch, block_tokens=engine.block_tokens, run_ahead=True
    )
    if not config.chunked:
        chosen = replace(chosen, batching=Batching.PREFILL_FIRST, watermark_frac=0.01, run_ahead=False)
    return chosen


def device_watts(machine: ServingMachine) -> tuple[float | None, float | None, float | None]:
    """Return watts of one device when idle, computing prompts, and decoding; None without a rated power."""
    device = machine.device
    if device.tdp_w is None:
        return None, None, None
    idle_w = device.idle_w if device.idle_w is not None else _IDLE_TDP_FRAC * device.tdp_w
    return idle_w, _PREFILL_TDP_FRAC * device.tdp_w, _DECODE_TDP_FRAC * device.tdp_w


def _catalogue_price(machine: ServingMachine) -> float:
    try:
        return device_price(machine.device).usd_per_hour
    except OutOfDomainError:
        return 0.0
