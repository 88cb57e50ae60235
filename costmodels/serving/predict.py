"""Predicted TTFT, TPOT and throughput of measured serving points: iteration tables, then the closed loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from costmodels.graph import ModelGraph
from costmodels.serving.closed_loop import (
    ClosedLoop,
    LoopResult,
    LoopTimes,
    PrefillPool,
    run_closed_loop,
)
from costmodels.serving.config import ServingConfig, ServingTable
from costmodels.serving.correction import LoopLatency, PointKind, ServingCorrection, serving_correction
from costmodels.serving.engine import EngineStack, find_engine, generation
from costmodels.serving.iteration import iteration_cost
from costmodels.serving.machine import serving_machine, system_device
from costmodels.serving.memory import kv_bytes_per_request, kv_transfer_bytes, serving_memory
from costmodels.serving.operators import IterationWork, ServingMachine
from costmodels.serving.runs import ServingRun

__all__ = [
    "IterationTimes",
    "RunPrediction",
    "closed_loop",
    "loop_latency",
    "loop_times",
    "max_requests",
    "point_kind",
    "predict_run",
    "predict_runs",
]

Floats = npt.NDArray[np.float64]
IterationTimes = Callable[[ModelGraph, ServingTable, EngineStack, ServingMachine, IterationWork], Floats]
"""Seconds of one iteration per row."""

_NODES = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192], dtype=float)
_LENGTH_SPREAD_FRAC = 0.2
"""Benchmarks draw lengths between 0.8 and 1 of the nominal ones (InferenceX: random range ratio 0.8)."""
_ADMITTED_OUTPUT_FRAC = 0.5
"""Of the answer is in cache on average; engines admit on what is held now and preempt later."""
_REQUESTS_PER_CLIENT = 10
_LONG_TOKENS = 4096
_PREFILL_UTILISATION = 0.75
"""Of separate prefill instances, where a row does not say how many there are (assumed)."""
_MAX_LOOP_REQUESTS = 20000
_BUSY_CLIENTS = 16


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


def loop_times(
    model: ModelGraph,
    config: ServingConfig,
    engine: EngineStack,
    machine: ServingMachine,
    clients: int,
    chunk: float,
    prompt: float,
    output: float,
    seconds_of: IterationTimes | None = None,
) -> LoopTimes:
    """Return iteration times of one attention group at batch nodes up to its clients.

    Parameters
    ----------
    chunk : prompt tokens of one mixed iteration.
    prompt, output : mean tokens of a request.
    seconds_of : in place of the cost model, for fits that ask again with other factors.
    """
    seconds_of = seconds_of or _modelled
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
    seconds = seconds_of(model, table, engine, machine, work)
    decode, mixed = seconds[: len(nodes)], seconds[len(nodes) :]
    plain = decode * np.where(nodes > 0, 1.0, 0.0)
    added = mixed - plain if engine.chunked else mixed
    return LoopTimes(
        batch_nodes=nodes,
        decode_s=np.minimum.accumulate(decode[::-1])[::-1],
        mixed_s=plain + np.maximum(added, 0.0),
    )


def point_kind(run: ServingRun) -> PointKind:
    """Return the groups that a run belongs to."""
    device = system_device(run.system)
    return PointKind(
        split=run.prefill is not None,
        guessed=bool(run.assumed),
        campaign=run.source,
        engine=run.engine,
        generation=generation(device),
        device=device.name,
        attention="wide" if run.decode.dp > 1 else "narrow",
        lengths=_lengths(run),
        load=int(
            np.clip((np.log2(run.concurrency / (run.decode.num_devices * run.num_decode)) + 2.0) // 2, 0, 4)
        ),
        busy=run.concurrency >= _BUSY_CLIENTS,
    )


def loop_latency(result: LoopResult) -> LoopLatency:
    """Return what the correction reads of a loop's result."""
    return LoopLatency(
        ttft_s=result.ttft_mean_s, ttft_median_s=result.ttft_median_s, tpot_s=result.tpot_mean_s
    )


def _lengths(run: ServingRun) -> str:
    if run.output_tokens > _LONG_TOKENS:
        return "long answers"
    return "long prompts" if run.prompt_tokens > _LONG_TOKENS else "even"


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
    correction = correction or serving_correction()
    loop, times = closed_loop(run, engine)
    result = run_closed_loop(loop, times)
    kind = point_kind(run)
    return RunPrediction(
        row_id=run.row_id,
        ttft_s=correction.ttft_s(kind, loop_latency(result)),
        tpot_s=correction.tpot_s(kind, result.tpot_mean_s),
        throughput_tokens_per_s=result.throughput_tokens_per_s * run.concurrency / loop.concurrency,
        mean_batch=result.mean_batch * run.concurrency / loop.concurrency / (run.decode.dp * run.num_decode),
        loop_ttft_s=result.ttft_mean_s,
        loop_tpot_s=result.tpot_mean_s,
    )


def closed_loop(
    run: ServingRun, engine: EngineStack, seconds_of: IterationTimes | None = None
) -> tuple[ClosedLoop, LoopTimes]:
    """Return the loop of one point, and its iteration times.

    Attention groups of a deployment are alike, so the loop holds one of them; or as many as share one
    queue of prompts, whose batches then spread over them.

    Parameters
    ----------
    seconds_of : in place of the cost model, for fits that ask again with other factors.
    """
    seconds_of = seconds_of or _modelled
    machine = serving_machine(system_device(run.system))
    groups = run.decode.dp * run.num_decode
    clients = max(1, -(-run.concurrency // groups))
    prompt = run.prompt_tokens * (1.0 - _LENGTH_SPREAD_FRAC / 2.0)
    chunk = float(max(min(engine.token_budget, _batched(prompt, clients, engine)), 1.0))
    held = max_requests(run, run.decode, engine, machine)
    if run.prefill is not None and run.decode.dp > 1:
        held = min(held, _slots(run))
    answer = run.output_tokens * (1.0 - _LENGTH_SPREAD_FRAC / 2.0)
    times = loop_times(
        run.model, run.decode, engine, machine, min(clients, held), chunk, prompt, answer, seconds_of
    )
    merged, pool = (1, None)
    if run.prefill is not None:
        merged, pool = _prefill_pool(run, engine, machine, float(times.decode_s[-1]), seconds_of)
    clients = min(clients * merged, max(run.concurrency, 1))
    loop = ClosedLoop(
        concurrency=clients,
        prompt_tokens=float(run.prompt_tokens),
        output_tokens=float(run.output_tokens),
        length_spread_frac=_LENGTH_SPREAD_FRAC,
        requests_per_client=int(np.clip(_MAX_LOOP_REQUESTS // clients, 3, _REQUESTS_PER_CLIENT)),
        chunk_tokens=chunk,
        max_batch=held * merged,
        admission_s=0.0,
        prefill=pool,
    )
    return loop, replace(times, batch_nodes=times.batch_nodes * merged)


def _slots(run: ServingRun) -> int:
    """Return how many requests a group of data-parallel attention decodes at once in a split deployment.

    Published recipes size slots in powers of two and run a few clients more than fit, so that every slot
    stays busy; the rest wait for a free one.
    """
    return 1 << int(np.log2(max(run.concurrency / (run.decode.dp * run.num_decode), 1.0)))


def _batched(prompt: float, clients: int, engine: EngineStack) -> float:
    """Return prompt tokens that one iteration takes: whole prompts that fit the budget, or a chunk of one."""
    if prompt >= engine.token_budget:
        return engine.token_budget
    return prompt * min(clients, max(1, int(engine.token_budget // prompt)))


def _prefill_pool(
    run: ServingRun,
    engine: EngineStack,
    machine: ServingMachine,
    decode_s: float,
    seconds_of: IterationTimes,
) -> tuple[int, PrefillPool]:
    """Return how many decode groups share the queues of prompts, and those queues.

    Every attention group of a prefill instance is a queue. Where the number of instances is unknown, they are
    as many as keep up with decoding.
    """
    assert run.prefill is not None
    config = run.prefill
    prompt = run.prompt_tokens * (1.0 - _LENGTH_SPREAD_FRAC / 2.0)
    most = max(1.0, engine.token_budget // prompt)
    prompts = np.unique(np.append(_NODES[(_NODES > 0) & (most > _NODES)], most))
    table = ServingTable.from_configs([config]).repeat(len(prompts))
    work = IterationWork.of(prompts * prompt, 0.0, 0.0, 0.0, prompts)
    seconds = np.maximum.accumulate(seconds_of(run.model, table, engine, machine, work))
    moved = float(kv_transfer_bytes(run.model, ServingTable.from_configs([config]), np.array([prompt]))[0])
    groups = run.decode.dp * run.num_decode
    count = run.num_prefill
    if count == 0:
        rate_per_s = run.concurrency / (run.output_tokens * decode_s)
        each_s = float(seconds[-1]) / prompts[-1] / config.dp
        count = max(1, -int(-rate_per_s * each_s // _PREFILL_UTILISATION))
    per_group = count * config.dp / groups
    merged = min(groups, -int(-1.0 // per_group))
    queues = max(1, round(per_group * merged))
    return merged, PrefillPool(
        num_queues=queues,
        token_nodes=prompts * prompt,
        seconds=seconds * queues / (per_group * merged),
        transfer_s=moved / machine.levels[-1].bytes_per_s,
    )


def _modelled(
    model: ModelGraph, table: ServingTable, engine: EngineStack, machine: ServingMachine, work: IterationWork
) -> Floats:
    return iteration_cost(model, table, engine, machine, work).iteration_s


def predict_runs(runs: Sequence[ServingRun]) -> list[RunPrediction]:
    """Return the predictions of all runs, in order."""
    return [predict_run(run) for run in runs]
