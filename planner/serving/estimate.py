"""The cost of exactly one serving configuration at a given load, part by part."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.graph import ModelGraph
from costmodels.power.engine import engine_draw
from costmodels.serving.closed_loop import ClosedLoop, run_closed_loop
from costmodels.serving.config import ServingConfig, ServingTable
from costmodels.serving.engine import EngineStack
from costmodels.serving.iteration import iteration_cost
from costmodels.serving.memory import ServingMemory, kv_bytes_per_request, serving_memory
from costmodels.serving.operators import IterationWork, ServingMachine
from costmodels.serving.predict import loop_times
from hardware.device import Device
from hardware.errors import InfeasibleError

__all__ = ["ServingEstimate", "estimate_serving"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingEstimate:
    """What one instance does under a closed loop of clients."""

    model: str
    device: str
    engine: str
    num_devices: int
    concurrency: int
    ttft_s: float
    """Mean."""
    tpot_s: float
    throughput_tokens_per_s: float
    """Output tokens."""
    decode_parts_s: dict[str, float]
    """Of one decode iteration at the full batch."""
    prefill_parts_s: dict[str, float]
    """Of one prompt alone, or of as much of it as one iteration takes: `prefill_tokens`."""
    prefill_tokens: int
    memory_parts_bytes: dict[str, float]
    """Per device."""
    max_requests: int
    """That the cache holds per attention group."""
    cost_usd_per_hour: float | None
    """Null where no price is known."""
    cost_usd_per_million_output_tokens: float | None
    watts: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON types."""
        return {"kind": "serve-estimate"} | {name: getattr(self, name) for name in self.__slots__}


def _room(
    model: ModelGraph, table: ServingTable, engine: EngineStack, device: Device, context_tokens: float
) -> tuple[ServingMemory, int]:
    """Return the memory of one configuration and how many requests of that context its cache holds."""
    memory = serving_memory(
        model,
        table,
        device_bytes=device.memory_bytes,
        memory_frac=engine.memory_frac,
        reserve_bytes=engine.reserve_bytes,
    )
    each = float(kv_bytes_per_request(model, table, np.array([context_tokens]), engine.block_tokens)[0])
    room = float(memory.kv_budget_bytes[0]) / each
    if room < 1.0:
        need = float(memory.weights_bytes[0]) / 1e9
        message = (
            f"{model.name} does not fit {device.name} with these degrees: weights take {need:.1f} GB of "
            f"{device.memory_bytes / 1e9:.1f} GB per device, and one request's cache {each / 1e9:.2f} GB"
        )
        raise InfeasibleError(message, ("memory",))
    return memory, int(min(room, int(table.max_batch[0])))


def _memory_parts(memory: ServingMemory) -> dict[str, float]:
    """Return bytes per device by part, of the first row."""
    return {
        "weights": float(memory.weights_bytes[0]),
        "adapters": float(memory.adapters_bytes[0]),
        "activations": float(memory.activations_bytes[0]),
        "reserve": float(memory.reserve_bytes[0]),
        "cache": float(memory.kv_budget_bytes[0]),
    }


def estimate_serving(
    model: ModelGraph,
    config: ServingConfig,
    engine: EngineStack,
    machine: ServingMachine,
    *,
    usd_per_hour: float | None,
    prompt_tokens: int,
    output_tokens: int,
    concurrency: int,
    tokens_per_step: float = 1.0,
) -> ServingEstimate:
    """Return what `concurrency` clients with requests of one size see of one instance.

    Parameters
    ----------
    usd_per_hour : price of one device; None where none is known.

    Raises
    ------
    InfeasibleError
        if the weights and one request exceed the device's memory.
    """
    device = machine.device
    table = ServingTable.from_configs([config])
    context = prompt_tokens + output_tokens / 2.0
    memory, held = _room(model, table, engine, device, context)
    clients = max(1, -(-concurrency // config.dp))
    chunk = float(min(prompt_tokens, engine.token_budget))
    times = loop_times(
        model, config, engine, machine, min(clients, held), chunk, float(prompt_tokens), float(output_tokens)
    )
    loop = ClosedLoop(
        concurrency=clients,
        prompt_tokens=float(prompt_tokens),
        output_tokens=float(output_tokens),
        length_spread_frac=0.0,
        requests_per_client=4,
        chunk_tokens=chunk,
        max_batch=held,
        admission_s=engine.admission_s,
        tokens_per_step=tokens_per_step,
    )
    seen = run_closed_loop(loop, times)
    batch = min(clients, held)
    decode = iteration_cost(model, table, engine, machine, IterationWork.of(0, 0, batch, batch * context))
    prompt = iteration_cost(model, table, engine, machine, IterationWork.of(chunk, 0, 0, 0))
    output = seen.throughput_tokens_per_s * config.dp
    cost = None if usd_per_hour is None else usd_per_hour * config.num_devices
    return ServingEstimate(
        model=model.name,
        device=device.name,
        engine=engine.name,
        num_devices=config.num_devices,
        concurrency=concurrency,
        ttft_s=seen.ttft_mean_s,
        tpot_s=seen.tpot_mean_s,
        throughput_tokens_per_s=output,
        decode_parts_s=decode.parts(0),
        prefill_parts_s=prompt.parts(0),
        prefill_tokens=int(chunk),
        memory_parts_bytes=_memory_parts(memory),
        max_requests=held,
        cost_usd_per_hour=cost,
        cost_usd_per_million_output_tokens=(None if cost is None else cost / (output * 3600.0) * 1e6),
        watts=_watts(
            model, config, device, float(batch * config.dp), float(prompt_tokens), float(output_tokens)
        ),
    )


def _watts(
    model: ModelGraph,
    config: ServingConfig,
    device: Device,
    batch: float,
    prompt_tokens: float,
    output_tokens: float,
) -> float | None:
    """Return the mean draw of the instance; None where the rated power of its devices is not known."""
    if device.tdp_w is None:
        return None
    draw = engine_draw(
        model,
        device,
        "both",
        num_devices=config.num_devices,
        weight_bytes=config.experts.bytes_per_weight,
        batch=batch,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
    )
    return draw.watts * config.num_devices
