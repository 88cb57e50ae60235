r"""A model over unlike machines none of which holds it: consecutive layers on each, tokens flow through all.

What a machine with :math:`k` of :math:`L` layers passes follows from the requests that its cache holds,
:math:`n(k)`, of which a share :math:`k / L` is with it at a time, :math:`b`: requests of :math:`o` output
tokens leave at :math:`b / (o \, t(k, b) + b \, p(k))` per second, with :math:`t` the decode step and
:math:`p` a prompt through its layers. The batch is cut until :math:`(t + b p / o) L / k` keeps the target
per token. Which machine holds which layers is searched on the exact maximum flow
(`solvers.serving_placement`); machines that the traffic does not need are given back, dearest first.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from costmodels.graph import Attention
from costmodels.power.draw import device_power, serving_draw_w
from costmodels.serving.config import ServingConfig, ServingTable
from costmodels.serving.iteration import iteration_cost
from costmodels.serving.machine import device_machine
from costmodels.serving.memory import kv_bytes_per_request, serving_memory
from costmodels.serving.operators import IterationWork
from hardware.errors import InfeasibleError
from planner.plan import Check
from planner.plan_io import plan_document
from planner.serving.capacity import queue_wait_s
from planner.serving.mix import Demand
from planner.serving.offers import DeviceOffer
from planner.serving.plan import FleetStrategy, LayerSpan, MixEntry, ServingPlan, ServingPrediction
from planner.serving.request import ServeRequest
from planner.serving.space import quant_of
from solvers.serving_placement import LayerFlow, LayerFlowProblem, layer_flow, solve_layer_flow

__all__ = ["plan_layers"]

Floats = npt.NDArray[np.float64]

_MAX_MACHINES = 64
_EVALUATIONS = 4000
_BATCHES = np.array([1.0, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256])
_MAX_LOAD = 0.95


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Kind:
    """Machines of one kind: devices of one type that hold their layers tensor-parallel."""

    offer: DeviceOffer
    config: ServingConfig
    count: int
    requests_per_s: Floats
    """By layers held; zero where none fits or no target is kept. shape (layers + 1,)"""
    prompt_s: float
    """Of one mean prompt through all layers on such machines."""
    step_s: Floats
    """Of a decode step through all layers, prompts of others included, by layers held."""


def plan_layers(request: ServeRequest, demands: tuple[Demand, ...]) -> ServingPlan | None:
    """Return one model's layers over all devices that can be had; None where that is not the question.

    It is where no instance holds the model and the number of every device is limited.

    Raises
    ------
    InfeasibleError
        if even all machines together do not pass the traffic within the targets.
    """
    demand = demands[0]
    offers = _offers(demand)
    if len(demands) > 1 or demand.search.num_feasible or request.form == "split" or not offers:
        return None
    best: tuple[float, list[_Kind], LayerFlowProblem] | None = None
    for form in request.formats:
        for kv in request.kv_formats:
            kinds = [k for o in offers if (k := _kind(demand, o, form, kv)) is not None]
            problem = _problem(demand, kinds) if kinds else None
            if problem is not None and (best is None or problem.compute_bound > best[0]):
                best = (problem.compute_bound, kinds, problem)
    if best is None:
        message = "no device holds even one layer of the model within the latency targets"
        raise InfeasibleError(message, ("memory",))
    return _placed(request, demand, best[1], best[2])


def _offers(demand: Demand) -> tuple[DeviceOffer, ...]:
    limited = [o for o in demand.offers if math.isfinite(o.max_devices)]
    return tuple(o for o in limited if o.max_devices > 0) if len(limited) == len(demand.offers) else ()


def _kind(demand: Demand, offer: DeviceOffer, form: str, kv: str) -> _Kind | None:
    """Return the largest tensor-parallel machine of a device, and what it passes by layers held."""
    model, engine, request = demand.model, demand.engine, demand.request
    heads = [op.num_heads for b in model.blocks for op in b.operators if isinstance(op, Attention)]
    most = int(min(offer.max_devices, request.max_devices_per_instance, offer.levels[0].size))
    degrees = [2**i for i in range(most.bit_length()) if 2**i <= most]
    tp = max((d for d in degrees if all(h % d == 0 for h in heads)), default=1)
    code = quant_of(form)
    config = ServingConfig(
        tp=tp, weights=code, experts=code, attention=code, kv=quant_of(kv),
        max_batch=engine.max_batch, token_budget=engine.token_budget, chunked=engine.chunked,
    )  # fmt: skip
    rates, prompt_s, step_s = _rates(demand, offer, config)
    if not rates.any():
        return None
    return _Kind(
        offer=offer,
        config=config,
        count=int(offer.max_devices) // tp,
        requests_per_s=rates,
        prompt_s=prompt_s,
        step_s=step_s,
    )


def _held_requests(demand: Demand, offer: DeviceOffer, config: ServingConfig, context: float) -> Floats:
    """Return the requests that the cache beside k layers holds. shape (layers + 1,)"""
    model, engine = demand.model, demand.engine
    table = ServingTable.from_configs([replace(config, pp=2), replace(config, pp=4)])
    memory = serving_memory(
        model,
        table,
        device_bytes=offer.device.memory_bytes,
        memory_frac=engine.memory_frac,
        reserve_bytes=engine.reserve_bytes,
    )
    # Two stage counts give what all layers take, and what the vocabulary adds to a stage at an end.
    half, quarter = memory.weights_bytes
    body = 4.0 * (half - quarter)
    ends = half - body / 2.0
    share = np.arange(model.num_layers + 1) / model.num_layers
    left = float(memory.kv_budget_bytes[0]) + half - ends - body * share
    whole = kv_bytes_per_request(model, table.take(slice(0, 1)), np.array([context]), engine.block_tokens)
    with np.errstate(divide="ignore", invalid="ignore"):
        held = np.where(share > 0, left / (2.0 * float(whole[0]) * share), 0.0)
    return np.where(held >= 1.0, held, 0.0)


def _rates(demand: Demand, offer: DeviceOffer, config: ServingConfig) -> tuple[Floats, float, Floats]:
    """Return requests per second by layers held, and seconds of a prompt and a step through all layers."""
    model, engine, slo = demand.model, demand.engine, demand.request.slo
    traffic = demand.workload.traffic
    prompt, output = traffic.mean_prompt_tokens, traffic.mean_output_tokens
    context = prompt + output / 2.0
    num_layers = model.num_layers
    machine = device_machine(offer.device, offer.levels)
    chunk = min(prompt, float(engine.token_budget))
    size = len(_BATCHES)
    work = IterationWork.of(
        np.array([0.0] * size + [chunk]),
        np.array([0.0] * size + [(prompt - chunk) / 2.0]),
        np.array([*_BATCHES, 0.0]),
        np.array([*(_BATCHES * context), 0.0]),
    )
    cost = iteration_cost(model, ServingTable.from_configs([config]).repeat(size + 1), engine, machine, work)
    every = cost.head_s + cost.host_s
    through = cost.iteration_s - every
    prompt_s = float(through[-1]) * prompt / chunk
    share = (np.arange(num_layers + 1) / num_layers)[:, None]
    step = through[None, :-1] * share + every[None, :-1]
    prompts = prompt_s * share + every[-1]
    busy = step + _BATCHES * prompts / output
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.where(share > 0, busy / share, np.inf)
        first = np.where(share > 0, (prompts + step) / share, np.inf)
    batch_held = _held_requests(demand, offer, config, context)[:, None] * share
    # Fewer than one request at a time only means that the machine waits.
    kept = (np.maximum(batch_held, 1.0) >= _BATCHES) & (batch_held > 0.0)
    if slo.tpot_s is not None:
        kept &= whole <= slo.tpot_s
    if slo.ttft_s is not None:
        kept &= first + engine.admission_s <= slo.ttft_s
    if slo.e2e_s is not None:
        kept &= first + output * whole <= slo.e2e_s
    rate = np.where(kept, np.minimum(_BATCHES, batch_held) / (output * busy), 0.0)
    best = np.argmax(rate, axis=1)
    rows = np.arange(num_layers + 1)
    return rate[rows, best], prompt_s, np.where(rate[rows, best] > 0, whole[rows, best], np.inf)


def _problem(demand: Demand, kinds: list[_Kind]) -> LayerFlowProblem | None:
    """Return machines and links in tokens per second (prompt and output of whole requests)."""
    model, traffic = demand.model, demand.workload.traffic
    tokens = traffic.mean_prompt_tokens + traffic.mean_output_tokens
    machines = [kind for kind in kinds for _ in range(kind.count)]
    if not machines or len(machines) > _MAX_MACHINES:
        return None
    speeds = []
    for kind in machines:
        usable = np.flatnonzero(kind.requests_per_s)
        speeds.append(kind.requests_per_s[: usable[-1] + 1] * tokens)
    if sum(len(s) - 1 for s in speeds) < model.num_layers:
        return None
    outer = np.array([k.offer.levels[-1].bytes_per_s * k.config.num_devices for k in machines])
    link = np.minimum(outer[:, None], outer[None, :]) / (2.0 * model.hidden)
    return LayerFlowProblem(
        num_layers=model.num_layers,
        tokens_per_s=tuple(speeds),
        link_tokens_per_s=link,
        entry_tokens_per_s=np.full(len(machines), 1e9),
        exit_tokens_per_s=np.full(len(machines), 1e9),
    )


def _without(problem: LayerFlowProblem, gone: set[int]) -> LayerFlowProblem:
    speeds = tuple(np.zeros_like(s) if i in gone else s for i, s in enumerate(problem.tokens_per_s))
    return replace(problem, tokens_per_s=speeds)


def _placed(
    request: ServeRequest, demand: Demand, kinds: list[_Kind], problem: LayerFlowProblem
) -> ServingPlan:
    """Return the plan of the best placement found, without the machines that the traffic does not need."""
    traffic = demand.workload.traffic
    asked = traffic.rate_per_s * (traffic.mean_prompt_tokens + traffic.mean_output_tokens)
    flow = solve_layer_flow(problem, max_evaluations=_EVALUATIONS).unwrap()
    machines = [kind for kind in kinds for _ in range(kind.count)]
    needed = max(asked / _MAX_LOAD, _needed_for_ttft(demand, kinds, asked))
    if flow.tokens_per_s < needed:
        message = (
            f"all {len(machines)} machines together pass {flow.tokens_per_s:.4g} tokens/s (no placement "
            f"passes more than {problem.compute_bound:.4g}); the traffic within its targets needs "
            f"{needed:.4g}"
        )
        raise InfeasibleError(message, ("max_devices",))
    gone: set[int] = set()
    dearest = sorted(range(len(machines)), key=lambda i: -_usd(machines[i]))
    for i in dearest:
        rest = layer_flow(_without(problem, gone | {i}), flow.start_layer, flow.num_layers)
        if rest.tokens_per_s >= needed:
            gone.add(i)
    final = layer_flow(_without(problem, gone), flow.start_layer, flow.num_layers)
    return _layer_plan(request, demand, machines, problem, final, gone, asked)


def _usd(kind: _Kind) -> float:
    return kind.offer.usd_per_hour * kind.config.num_devices


def _needed_for_ttft(demand: Demand, kinds: list[_Kind], asked: float) -> float:
    """Return the flow at which the queue before the first machine leaves the target for the first token."""
    slo, cv = demand.request.slo, demand.workload.traffic.arrival_cv
    if slo.ttft_s is None:
        return asked
    service = max(k.prompt_s for k in kinds)
    beyond = 1.0 - slo.percentile / 100.0
    loads = np.linspace(0.02, _MAX_LOAD, 94)
    waits = queue_wait_s(loads, np.full(len(loads), service), beyond, cv)
    kept = loads[service + waits + demand.engine.admission_s <= slo.ttft_s]
    return asked / float(kept.max()) if len(kept) else math.inf


def _layer_plan(
    request: ServeRequest,
    demand: Demand,
    machines: list[_Kind],
    problem: LayerFlowProblem,
    flow: LayerFlow,
    gone: set[int],
    asked: float,
) -> ServingPlan:
    used = [i for i in range(len(machines)) if i not in gone]
    spans = tuple(
        LayerSpan(
            machine=i,
            device=machines[i].offer.device.name,
            num_devices=machines[i].config.num_devices,
            first_layer=int(flow.start_layer[i]),
            num_layers=int(flow.num_layers[i]),
            tokens_per_s=float(problem.tokens_per_s[i][flow.num_layers[i]]),
        )
        for i in used
    )
    load = asked / flow.tokens_per_s
    mix = tuple(_entry(machines, used, kind, load) for kind in dict.fromkeys(id(machines[i]) for i in used))
    predicted = _prediction(request, demand, [machines[i] for i in used], flow, used, asked)
    detail = (
        f"{flow.tokens_per_s:.5g} tokens/s pass, {asked:.5g} are asked; no placement on all "
        f"{len(machines)} machines passes more than {problem.compute_bound:.5g}"
    )
    return ServingPlan(
        strategy=FleetStrategy(
            form="layers", engine=demand.engine.name, instances={m.name: m.count for m in mix}
        ),
        mix=mix,
        routing=(),
        predicted=predicted,
        certificate=(
            Check(name="traffic-within-the-flow", holds=asked <= flow.tokens_per_s, detail=detail),
            Check(
                name="every-layer-held", holds=_covered(spans, demand.model.num_layers), detail="re-checked"
            ),
        ),
        reason=(
            f"no instance of one kind holds {demand.model.name}: its {demand.model.num_layers} layers are "
            f"spread over {len(used)} of {len(machines)} machines; not simulated"
        ),
        layers=spans,
    )


def _prediction(
    request: ServeRequest,
    demand: Demand,
    machines: list[_Kind],
    flow: LayerFlow,
    used: list[int],
    asked: float,
) -> ServingPrediction:
    """Return the figures of the machines in use, latencies as at the full flow."""
    traffic = demand.workload.traffic
    cost = sum(_usd(kind) for kind in machines)
    watts = _watts(machines)
    step_s = max(float(m.step_s[flow.num_layers[i]]) for m, i in zip(machines, used, strict=True))
    service = max(kind.prompt_s for kind in machines)
    beyond = 1.0 - request.percentile / 100.0
    wait = queue_wait_s(
        np.array([asked / flow.tokens_per_s]), np.array([service]), beyond, traffic.arrival_cv
    )
    output = traffic.rate_per_s * traffic.mean_output_tokens
    return ServingPrediction(
        ttft_s=service + float(wait[0]) + demand.engine.admission_s,
        tpot_s=step_s,
        throughput_tokens_per_s=output,
        requests_per_s=traffic.rate_per_s,
        num_devices=sum(kind.config.num_devices for kind in machines),
        cost_usd_per_hour=cost,
        cost_usd_per_million_tokens=cost / (asked * 3600.0) * 1e6,
        best_single_usd_per_hour=None,
        bound_usd_per_hour=None,
        watts=watts,
        joules_per_token=None if watts is None else watts / output,
        headroom_frac=flow.tokens_per_s / asked - 1.0,
    )


def _entry(machines: list[_Kind], used: list[int], kind: int, load: float) -> MixEntry:
    mine = [i for i in used if id(machines[i]) == kind]
    one = machines[mine[0]]
    document = plan_document(one.config)
    return MixEntry(
        name=f"layers-{one.offer.device.name}-tp{one.config.tp}",
        device=one.offer.device.name,
        count=len(mine),
        role="both",
        config={k: v.replace("_", "-") if isinstance(v, str) else v for k, v in document.items()},
        devices_per_instance=one.config.num_devices,
        usd_per_hour=_usd(one),
        load_frac=load,
    )


def _watts(machines: list[_Kind]) -> float | None:
    if any(kind.offer.device.tdp_w is None for kind in machines):
        return None
    return sum(
        serving_draw_w(device_power(kind.offer.device), "both") * kind.config.num_devices for kind in machines
    )


def _covered(spans: tuple[LayerSpan, ...], num_layers: int) -> bool:
    held = {layer for s in spans for layer in range(s.first_layer, s.first_layer + s.num_layers)}
    return held == set(range(num_layers))
