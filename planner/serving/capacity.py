r"""Requests per second that one instance sustains per request size within the latency targets.

For a group that decodes :math:`B` requests on average, answers of :math:`o` tokens, a decode iteration of
:math:`t(B)` and a prompt that adds :math:`p` to an iteration:

.. math::

    \text{TPOT} = t(B) / a + B p / o, \qquad x = B / (o \, \text{TPOT}), \qquad \rho = x p

with :math:`a` tokens per step; prompts take the share :math:`\rho` of the time. Attention groups of one
instance step together, so a prompt of one holds up all: of n groups, an iteration has a prompt with
probability :math:`1 - (1 - B / o)^n` instead of :math:`B / o`. In an instance of s pipeline stages, s such
groups take turns, each passing a stage while the others pass the rest. The
occupancy is Poisson, so at percentile q it is :math:`B + z_q \sqrt B`; the wait of a prompt has the tail of
an M/G/1 queue, :math:`\rho e^{-2 (1 - \rho) w / (p (1 + c^2))}`. The largest :math:`B` that keeps
every target and the cache sets the capacity. Equal instances share one queue, as many as the whole rate of
the size keeps at that load: with c of them it is the tail of an M/G/c queue.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from costmodels.graph import ModelGraph
from costmodels.job import Slo
from costmodels.serving.config import ServingTable
from costmodels.serving.engine import EngineStack
from costmodels.serving.iteration import iteration_cost
from costmodels.serving.memory import kv_bytes_per_request, kv_transfer_bytes, serving_memory
from costmodels.serving.operators import IterationWork, ServingMachine
from planner.workload import Buckets

__all__ = [
    "Capacity",
    "GridTimes",
    "bound_words",
    "grid_times",
    "joint_capacity",
    "prefill_capacity",
    "queue_wait_s",
    "split_capacity",
]

Floats = npt.NDArray[np.float64]

_BATCHES = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048], dtype=float)
_FINE = 2.0 ** np.concatenate([np.arange(-16.0, -7.0), np.arange(-7.0, 11.01, 0.2)])
"""Mean occupancies that are tried; below one, an instance is mostly busy with prompts, or idle."""
_MAX_UTILISATION = 0.95
_CONTEXT_NODES = 3
_PROMPT_NODES = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GridTimes:
    """Iteration times of configurations on grids of batch, context and prompt length."""

    contexts: Floats
    decode_s: Floats
    """shape (configs, batches, contexts)"""
    prompts: Floats
    prefill_s: Floats
    """One prompt alone. shape (configs, prompts)"""

    def decode_at(self, contexts: Floats) -> Floats:
        """Return decode times at fine batches and given contexts. shape (configs, buckets, batches)"""
        position = np.interp(contexts, self.contexts, np.arange(len(self.contexts)))
        low = np.minimum(position.astype(int), len(self.contexts) - 2)
        share = position - low
        mixed = self.decode_s[:, :, low] * (1 - share) + self.decode_s[:, :, low + 1] * share
        where = np.interp(_FINE, _BATCHES, np.arange(len(_BATCHES)))
        first = np.minimum(where.astype(int), len(_BATCHES) - 2)
        part = (where - first)[None, :, None]
        fine = mixed[:, first, :] * (1 - part) + mixed[:, first + 1, :] * part
        return np.ascontiguousarray(fine.transpose(0, 2, 1))

    def prefill_at(self, prompts: Floats) -> Floats:
        """Return the time of one prompt of each length. shape (configs, buckets)"""
        return np.stack([np.interp(prompts, self.prompts, row) for row in self.prefill_s])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Capacity:
    """Per configuration and bucket. shape (configs, buckets)"""

    rate_per_s: Floats
    """Of one instance; zero where a target cannot be kept."""
    ttft_s: Floats
    """At the percentile, at that rate; infinite where the rate is zero."""
    tpot_s: Floats
    batch: Floats
    """Mean requests decoding in one attention group."""
    best_ttft_s: Floats
    """With no other request: no plan can be below it."""
    best_tpot_s: Floats


def grid_times(
    model: ModelGraph,
    table: ServingTable,
    engine: EngineStack,
    machine: ServingMachine,
    buckets: Buckets,
    *,
    prefix_hit_frac: float = 0.0,
) -> GridTimes:
    """Return iteration times of every configuration on grids that cover the buckets and their new tokens."""
    context = buckets.prompt_tokens + buckets.output_tokens / 2.0
    contexts = np.geomspace(max(context.min() * 0.99, 1.0), context.max() * 1.01 + 1.0, _CONTEXT_NODES)
    new = buckets.prompt_tokens * (1.0 - prefix_hit_frac)
    prompts = np.geomspace(max(new.min() * 0.99, 1.0), new.max() * 1.01 + 1.0, _PROMPT_NODES)
    batch, held = (a.ravel() for a in np.meshgrid(_BATCHES, contexts, indexing="ij"))
    zero = np.zeros(len(prompts))
    chunk = np.minimum(prompts, engine.token_budget)
    work = IterationWork(
        prefill_tokens=np.concatenate([np.zeros(len(batch)), chunk]),
        prefill_context=np.concatenate([np.zeros(len(batch)), (prompts - chunk) / 2.0]),
        prefill_seqs=np.concatenate([np.zeros(len(batch)), zero + 1.0]),
        decode_seqs=np.concatenate([batch, zero]),
        decode_context=np.concatenate([batch * held, zero]),
    )
    num_rows, num_configs = len(work.decode_seqs), len(table)
    tiled = IterationWork(
        **{
            name: np.tile(getattr(work, name), num_configs)
            for name in ("prefill_tokens", "prefill_context", "prefill_seqs", "decode_seqs", "decode_context")
        }
    )
    seconds = iteration_cost(model, table.repeat(num_rows), engine, machine, tiled).iteration_s
    grid = seconds.reshape(num_configs, num_rows)
    decode = grid[:, : len(batch)].reshape(num_configs, len(_BATCHES), len(contexts))
    return GridTimes(
        contexts=contexts,
        decode_s=np.maximum.accumulate(decode, axis=1),
        prompts=prompts,
        prefill_s=grid[:, len(batch) :] * (prompts / chunk),
    )


def _quantile(slo: Slo) -> tuple[float, float]:
    """Return the normal quantile of the percentile, and the share of requests beyond it."""
    beyond = 1.0 - slo.percentile / 100.0
    return NormalDist().inv_cdf(slo.percentile / 100.0), beyond


def queue_wait_s(
    load: Floats, service_s: Floats, beyond: float, cv: float, servers: Floats | float = 1.0
) -> Floats:
    r"""Return the wait that the share `beyond` of the requests exceeds, in an M/G/c-like queue.

    Parameters
    ----------
    load : of each server.
    servers : that take requests from one queue; a router that knows who is free makes instances such.

    Notes
    -----
    A request waits at all with probability :math:`\rho^{\sqrt{2 (c + 1)} - 1}` (H. Sakasegawa, An
    approximation formula L_q = alpha rho^beta / (1 - rho), Ann. Inst. Stat. Math. 29, 1977); c servers empty
    the queue.
    """
    waits = load ** (np.sqrt(2.0 * (servers + 1.0)) - 1.0)
    tail = np.log(np.maximum(waits / beyond, 1.0))
    room = np.maximum(1.0 - load, 1e-9) * servers
    return service_s * (1.0 + cv**2) / (2.0 * room) * tail


def _held(
    model: ModelGraph, table: ServingTable, engine: EngineStack, machine: ServingMachine, context: Floats
) -> Floats:
    """Return requests of each bucket that the cache gives one group. shape (configs, buckets)"""
    memory = serving_memory(
        model,
        table,
        device_bytes=machine.device.memory_bytes,
        memory_frac=engine.memory_frac,
        reserve_bytes=engine.reserve_bytes,
    )
    each = np.stack(
        [kv_bytes_per_request(model, table, np.array(c), engine.block_tokens) for c in context], axis=1
    )
    return np.minimum(memory.kv_budget_bytes[:, None] / each, table.max_batch[:, None]) / table.pp[:, None]


def _groups(table: ServingTable) -> Floats:
    """Return what takes requests side by side: attention groups, or the batches between which stages turn."""
    return (table.dp * table.pp).astype(float)


def _pick(
    rate: Floats, kept: npt.NDArray[np.bool_], ttft: Floats, tpot: Floats, batch: Floats, groups: Floats
) -> Capacity:
    """Return the largest rate over the batch axis that keeps the targets, with its latencies."""
    allowed = np.where(kept, rate, 0.0)
    best = np.argmax(allowed, axis=2)[:, :, None]
    chosen = np.take_along_axis(allowed, best, axis=2)[:, :, 0]
    none = chosen <= 0.0

    def at(values: Floats) -> Floats:
        full = np.broadcast_to(values, rate.shape)
        return np.where(none, np.inf, np.take_along_axis(full, best, axis=2)[:, :, 0])

    return Capacity(
        rate_per_s=chosen * groups[:, None],
        ttft_s=at(ttft),
        tpot_s=at(tpot),
        batch=np.where(none, 0.0, at(batch)),
        best_ttft_s=np.min(ttft, axis=2),
        best_tpot_s=np.min(tpot, axis=2),
    )


def _within(slo: Slo, ttft: Floats, tpot: Floats, output: Floats) -> npt.NDArray[np.bool_]:
    kept = np.ones(np.broadcast_shapes(ttft.shape, tpot.shape), dtype=bool)
    if slo.ttft_s is not None:
        kept &= ttft <= slo.ttft_s
    if slo.tpot_s is not None:
        kept &= tpot <= slo.tpot_s
    if slo.e2e_s is not None:
        kept &= ttft + output * tpot <= slo.e2e_s
    return kept


def _exempt(buckets: Buckets) -> npt.NDArray[np.bool_]:
    """Return which buckets need not keep the targets. shape (1, buckets, 1)"""
    late: npt.NDArray[np.bool_] = np.isin(buckets.names, buckets.late)[None, :, None]
    return late


def joint_capacity(
    model: ModelGraph,
    table: ServingTable,
    engine: EngineStack,
    machine: ServingMachine,
    buckets: Buckets,
    slo: Slo,
    *,
    times: GridTimes,
    arrival_cv: float = 1.0,
    prefix_hit_frac: float = 0.0,
    tokens_per_step: float = 1.0,
) -> Capacity:
    """Return what instances that do both phases sustain."""
    z, beyond = _quantile(slo)
    output = buckets.output_tokens[None, :, None]
    context = buckets.prompt_tokens + buckets.output_tokens / 2.0
    decode = times.decode_at(context) / tokens_per_step
    prompt = (times.prefill_at(buckets.prompt_tokens * (1.0 - prefix_hit_frac)))[:, :, None]
    batch = _FINE[None, None, :]
    crowd = batch + z * np.sqrt(batch)
    chunks = np.ceil(buckets.prompt_tokens * (1.0 - prefix_hit_frac) / engine.token_budget)[None, :, None]
    held_up = _held_up(batch * chunks / output, table) * prompt / chunks
    rate = batch / (output * (decode + held_up))
    slower = _at_batch(decode, crowd)
    load = rate * prompt
    tpot = slower * (1.0 + held_up / decode)
    servers = _servers(buckets, rate)
    ttft = prompt + decode + engine.admission_s + queue_wait_s(load, prompt, beyond, arrival_cv, servers)
    held = _held(model, table, engine, machine, context)[:, :, None]
    kept = (_within(slo, ttft, tpot, output) | _exempt(buckets)) & (crowd <= held) & (load < _MAX_UTILISATION)
    return _pick(rate, kept, ttft, tpot, batch, _groups(table))


def _held_up(chunks_per_step: Floats, table: ServingTable) -> Floats:
    """Return pieces of prompts that an iteration waits for. shape (configs, buckets, batches)"""
    any_group = 1.0 - (1.0 - np.minimum(chunks_per_step, 1.0)) ** table.dp[:, None, None]
    return np.maximum(chunks_per_step, any_group)


def _servers(buckets: Buckets, rate: Floats) -> Floats:
    """Return how many groups with so much rate each share the requests of a size. shape of `rate`

    The router sends a prompt where none waits, so equal instances have one queue.
    """
    whole: Floats = np.maximum(np.floor(buckets.rate_per_s[None, :, None] / rate), 1.0)
    return whole


def _at_batch(decode: Floats, crowd: Floats) -> Floats:
    """Return decode times at the crowded batches, by interpolation along the batch axis."""
    position = np.interp(crowd.ravel(), _FINE, np.arange(len(_FINE)))
    low = np.minimum(position.astype(int), len(_FINE) - 2)
    share = position - low
    inside = decode[:, :, low] * (1 - share) + decode[:, :, low + 1] * share
    beyond = np.maximum(crowd.ravel() / _FINE[-1], 1.0)
    return np.asarray(inside * beyond)


def prefill_capacity(
    model: ModelGraph,
    table: ServingTable,
    engine: EngineStack,
    machine: ServingMachine,
    buckets: Buckets,
    slo: Slo,
    *,
    times: GridTimes,
    arrival_cv: float = 1.0,
    prefix_hit_frac: float = 0.0,
) -> Capacity:
    """Return what instances that hold prompts only sustain; TTFT includes the cache's way to the decoder."""
    _, beyond = _quantile(slo)
    prompt = times.prefill_at(buckets.prompt_tokens * (1.0 - prefix_hit_frac))[:, :, None]
    moved = np.stack([kv_transfer_bytes(model, table, np.array(p)) for p in buckets.prompt_tokens], axis=1)
    way = machine.levels[-1]
    transfer = (moved / (way.bytes_per_s * table.num_devices[:, None]) + way.latency_s)[:, :, None]
    load = np.linspace(0.02, _MAX_UTILISATION, 48)[None, None, :]
    rate = load / prompt
    servers = _servers(buckets, rate)
    ttft = prompt + transfer + engine.admission_s + queue_wait_s(load, prompt, beyond, arrival_cv, servers)
    kept = np.ones(ttft.shape, dtype=bool) if slo.ttft_s is None else ttft <= slo.ttft_s
    if slo.e2e_s is not None:
        kept &= ttft <= slo.e2e_s / 2.0
    kept |= _exempt(buckets)
    return _pick(rate, kept, ttft, np.zeros(ttft.shape), load, _groups(table))


def split_capacity(
    model: ModelGraph,
    table: ServingTable,
    engine: EngineStack,
    machine: ServingMachine,
    buckets: Buckets,
    slo: Slo,
    *,
    times: GridTimes,
    tokens_per_step: float = 1.0,
) -> Capacity:
    """Return what instances that only decode sustain."""
    z, _ = _quantile(slo)
    output = buckets.output_tokens[None, :, None]
    context = buckets.prompt_tokens + buckets.output_tokens / 2.0
    decode = times.decode_at(context) / tokens_per_step
    batch = _FINE[None, None, :]
    crowd = batch + z * np.sqrt(batch)
    tpot = _at_batch(decode, crowd)
    rate = batch / (output * decode)
    held = _held(model, table, engine, machine, context)[:, :, None]
    kept = np.ones(tpot.shape, dtype=bool) if slo.tpot_s is None else tpot <= slo.tpot_s
    if slo.e2e_s is not None:
        kept &= output * tpot <= slo.e2e_s / 2.0
    kept = np.broadcast_to((kept | _exempt(buckets)) & (crowd <= held), rate.shape)
    return _pick(rate, kept, np.zeros(rate.shape), tpot, batch, _groups(table))


def bound_words(capacity: Capacity, slo: Slo) -> str:
    """Return the smallest latencies that any configuration reaches, against the targets, in words."""
    parts = []
    for name, target, best in (
        ("TTFT", slo.ttft_s, capacity.best_ttft_s),
        ("TPOT", slo.tpot_s, capacity.best_tpot_s),
    ):
        if target is not None and best.size and 0.0 < float(best.max(axis=1).min()) < math.inf:
            parts.append(f"{name} target {target:g} s, lowest possible {float(best.max(axis=1).min()):.4g} s")
    return "; ".join(parts)
