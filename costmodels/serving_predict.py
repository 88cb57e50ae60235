"""Predicted TTFT, TPOT and throughput of measured serving points: iteration tables, then the closed loop."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.graph import ModelGraph
from costmodels.serving import iteration_cost
from costmodels.serving_closed_loop import ClosedLoop, LoopResult, LoopTimes, run_closed_loop
from costmodels.serving_config import ServingConfig, ServingTable
from costmodels.serving_correction import PointKind, ServingCorrection, serving_correction
from costmodels.serving_engine import EngineStack, find_engine
from costmodels.serving_machine import serving_machine, system_device
from costmodels.serving_memory import kv_bytes_per_request, kv_transfer_bytes, serving_memory
from costmodels.serving_operators import IterationWork, ServingMachine
from costmodels.serving_runs import ServingRun

__all__ = [
    "RunPrediction",
    "loop_tables",
    "loop_times",
    "max_requests",
    "point_kind",
    "predict_run",
    "predict_runs",
]

Floats = npt.NDArray[np.float64]

_NODES = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192], dtype=float)
_LENGTH_SPREAD_FRAC = 0.2
"""Benchmarks draw lengths between 0.8 and 1 of the nominal ones (InferenceX: random range ratio 0.8)."""
_ADMITTED_OUTPUT_FRAC = 0.5
"""Of the answer is in cache on average; engines admit on what is held now and preempt later."""
_REQUESTS_PER_CLIENT = 10
_MAX_LOOP_REQUESTS = 20000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPrediction:
    """What one point should have measured."""

    row_id: str
    ttft_s: float
    tpot_s: float
    throughput_tokens_per_s: float
    """Output tokens of the whole deployment."""
    mean_batch: float
    loop_ttft_s: float
    """Before the correction."""
    loop_tpot_s: float


def max_requests(run: ServingRun, config: ServingConfig, engine: EngineStack, machine: ServingMachine) -> int:
    """Return how many requests of the run's length one attention group holds.

    A measured run did fit: where the estimate leaves no room for even one request, the row says too little of
    its instance, and only the engine's own limit applies.
    """
    table = ServingTable.from_configs([config])
    memory = serving_memory(
        run.model,
        table,
        device_bytes=machine.device.memory_bytes,
        memory_frac=engine.memory_frac,
        reserve_bytes=engine.reserve_bytes,
    )
    context = np.array([run.prompt_tokens + _ADMITTED_OUTPUT_FRAC * run.output_tokens])
    each = kv_bytes_per_request(run.model, table, context, engine.block_tokens)
    room = memory.kv_budget_bytes[0] / each[0]
    if room < 1.0:
        return engine.max_batch
    return int(min(room, engine.max_batch))


def loop_tables(
    run: ServingRun,
    config: ServingConfig,
    engine: EngineStack,
    machine: ServingMachine,
    clients: int,
    chunk: float,
) -> LoopTimes:
    """Return iteration times of one attention group of a run, at its mean lengths."""
    spread = 1.0 - _LENGTH_SPREAD_FRAC / 2.0
    lengths = (spread * run.prompt_tokens, spread * run.output_tokens)
    return loop_times(run.model, config, engine, machine, clients, chunk, *lengths)


def loop_times(
    model: ModelGraph,
    config: ServingConfig,
    engine: EngineStack,
    machine: ServingMachine,
    clients: int,
    chunk: float,
    prompt: float,
    output: float,
) -> LoopTimes:
    """Return iteration times of one attention group at batch nodes up to its clients.

    Parameters
    ----------
    chunk : prompt tokens of one mixed iteration.
    prompt, output : mean tokens of a request.
    """
    nodes = np.unique(np.append(_NODES[clients > _NODES], [float(clients)]))
    context = prompt + output / 2.0
    prompts = np.full(len(nodes), max(chunk / prompt, 1.0))
    cached = max(0.0, prompt - chunk) / 2.0
    zero = np.zeros(len(nodes))
    alone = np.maximum(nodes, 1.0)
    beside = nodes if engine.chunked else zero
    work = IterationWork(
        prefill_tokens=np.concatenate([zero, np.full(len(nodes), chunk)]),
        prefill_context=np.concatenate([zero, np.full(len(nodes), cached)]),
        prefill_seqs=np.concatenate([zero, prompts]),
        decode_seqs=np.concatenate([alone, beside]),
        decode_context=np.concatenate([alone, beside]) * context,
    )
    table = ServingTable.from_configs([config]).repeat(2 * len(nodes))
    seconds = iteration_cost(model, table, engine, machine, work).iteration_s
    decode, mixed = seconds[: len(nodes)], seconds[len(nodes) :]
    plain = decode * np.where(nodes > 0, 1.0, 0.0)
    added = mixed - plain if engine.chunked else mixed
    return LoopTimes(
        batch_nodes=nodes,
        decode_s=np.maximum.accumulate(decode),
        mixed_s=plain + engine.prefill_scale * np.maximum(added, 0.0),
    )


def point_kind(run: ServingRun) -> PointKind:
    """Return the groups that a run belongs to."""
    device = system_device(run.system)
    generation = (
        f"{device.vendor},{'fp4' if device.fp4_flops_per_s else 'fp8' if device.fp8_flops_per_s else 'bf16'}"
    )
    return PointKind(
        split=run.prefill is not None,
        guessed=bool(run.assumed),
        campaign=run.source,
        engine=run.engine,
        generation=generation,
    )


def predict_run(
    run: ServingRun, engine: EngineStack | None = None, correction: ServingCorrection | None = None
) -> RunPrediction:
    """Return the prediction of one point.

    Parameters
    ----------
    engine : in place of the fitted one of that name.
    correction : in place of the shipped one.
    """
    engine = engine or find_engine(run.engine)
    machine = serving_machine(system_device(run.system))
    groups = run.decode.dp * run.num_decode
    clients = max(1, -(-run.concurrency // groups))
    split = run.prefill is not None
    prompt = run.prompt_tokens * (1.0 - _LENGTH_SPREAD_FRAC / 2.0)
    chunk = float(max(min(engine.token_budget, _batched(prompt, clients, engine)), 1.0))
    held = max_requests(run, run.decode, engine, machine)
    times = loop_tables(run, run.decode, engine, machine, min(clients, held), chunk)
    rounds = int(np.clip(_MAX_LOOP_REQUESTS // clients, 3, _REQUESTS_PER_CLIENT))
    workers, prefill_s = _prefill_pool(run, engine, machine, clients, times) if split else (0, 0.0)
    loop = ClosedLoop(
        concurrency=clients,
        prompt_tokens=float(run.prompt_tokens),
        output_tokens=float(run.output_tokens),
        length_spread_frac=_LENGTH_SPREAD_FRAC,
        requests_per_client=rounds,
        chunk_tokens=chunk,
        max_batch=held,
        admission_s=engine.admission_s,
        num_prefill_workers=workers,
        prefill_s=prefill_s,
    )
    result: LoopResult = run_closed_loop(loop, times)
    kind = point_kind(run)
    correction = correction or serving_correction()
    return RunPrediction(
        row_id=run.row_id,
        ttft_s=correction.ttft_s(kind, result.ttft_mean_s, result.tpot_mean_s),
        tpot_s=correction.tpot_s(kind, result.tpot_mean_s),
        throughput_tokens_per_s=result.throughput_tokens_per_s * groups,
        mean_batch=result.mean_batch,
        loop_ttft_s=result.ttft_mean_s,
        loop_tpot_s=result.tpot_mean_s,
    )


def _batched(prompt: float, clients: int, engine: EngineStack) -> float:
    """Return prompt tokens that one iteration takes: whole prompts that fit the budget, or a chunk of one."""
    if prompt >= engine.token_budget:
        return engine.token_budget
    return prompt * min(clients, max(1, int(engine.token_budget // prompt)))


def _prefill_pool(
    run: ServingRun, engine: EngineStack, machine: ServingMachine, clients: int, times: LoopTimes
) -> tuple[int, float]:
    """Return prefill queues per decode group, and seconds of one prompt and its cache's way.

    Every attention group of a prefill instance is a queue; queues are dealt out over the decode groups.
    """
    assert run.prefill is not None
    config = run.prefill
    table = ServingTable.from_configs([config])
    prompt = run.prompt_tokens * (1.0 - _LENGTH_SPREAD_FRAC / 2.0)
    work = IterationWork.of(prompt, 0.0, 0.0, 0.0)
    cost = iteration_cost(run.model, table, engine, machine, work)
    seconds = engine.prefill_scale * float(cost.iteration_s[0])
    moved = float(kv_transfer_bytes(run.model, table, np.array([prompt]))[0])
    transfer = moved / machine.levels[-1].bytes_per_s if config.num_devices else 0.0
    groups = run.decode.dp * run.num_decode
    decode_s = float(times.decode_s[-1])
    count = run.num_prefill
    if count == 0:
        demand = run.concurrency / (run.output_tokens * decode_s) * seconds / config.dp
        count = max(1, round(demand))
    queues = count * config.dp / groups
    whole = max(1, round(queues))
    return whole, seconds * whole / queues + transfer


def predict_runs(runs: Sequence[ServingRun]) -> list[RunPrediction]:
    """Return the predictions of all runs, in order."""
    return [predict_run(run) for run in runs]
