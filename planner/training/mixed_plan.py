"""Training across islands: groups of nodes that differ in devices or in networks.

Only the pipeline crosses from one group to another, because it carries the least: every tensor, data and
expert group stays inside one group's fabric. A group may have its own tensor degree and number of stages; all
share the number of replicas, so pipelines run side by side. Layers are dealt to the stages by what each
attains, compute plus its share of the gradient reduction, exactly (`solvers.stage_split`), within the memory
of its devices. Per micro-batch a stage takes its compute and one exchange per neighbour, activations one way
and gradients the other at once; the first stages of two groups exchange over their best common fabric.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from costmodels.job import TrainingJob
from costmodels.memory.peak import memory_coefficients, usable_bytes
from costmodels.stacks import device_stack
from costmodels.strategy import ConfigTable, Recompute, Strategy
from costmodels.training.evaluate import evaluate
from hardware.cluster import Cluster
from planner.training.mixed_shapes import MICRO_BATCHES, equal_groups, mixed_shapes
from planner.training.stage_hops import Layout, StageHops, exchanges_s
from solvers.stage_split import StageSplitProblem, solve_stage_split

__all__ = [
    "MixedPipeline",
    "MixedSearch",
    "MixedStage",
    "best_mixed_pipelines",
    "search_mixed_pipelines",
]

Floats = npt.NDArray[np.float64]

_SAFE_DEVIATIONS = 2.326
"""Standard deviations that 99 % of a normal distribution lie below."""
_ROUNDING = 1.0 + 1e-9
_SAME = 1e-6
"""Relative difference up to which two pipelines count as the same one in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedStage:
    """One stage of the pipeline."""

    group: int
    """Index of the cluster's group whose devices hold it."""
    tp: int
    num_layers: int
    compute_s: float
    """Per micro-batch, forward and backward."""
    gradient_s: float
    """Exposed gradient reduction of a step."""
    peak_memory_bytes: float
    limit_bytes: float
    """What fits with 99 % probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedPipeline:
    """A strategy whose stages differ, and its cost."""

    strategy: Strategy
    """Common degrees; `tp` is that of the first stage."""
    stages: tuple[MixedStage, ...]
    compute_s: float
    exposed_p2p_s: float
    gradient_s: float
    tied_s: float
    """Adding up the gradients of an embedding that the first and the last stage share."""
    other_s: float
    """Optimizer step and fixed costs."""
    model_flops: float
    sigma: float
    """Standard deviation of ln(measured / predicted) step time."""

    @property
    def step_s(self) -> float:
        """Time of one optimizer step."""
        return self.compute_s + self.exposed_p2p_s + self.gradient_s + self.tied_s + self.other_s


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedSearch:
    """The fastest pipelines, and how many there are."""

    pipelines: tuple[MixedPipeline, ...]
    """Best first; empty if none fits."""
    num_layouts: int
    """Divisions of the groups with their micro-batch and recomputation, all of them costed or bounded."""
    num_fit: int
    """Layouts that were split into layers and fit; the others' bounds are no faster than the answer."""


@dataclass(frozen=True, slots=True)
class _GroupCosts:
    """Per layer costs of one group under one strategy."""

    layer_s: float
    gradient_s: float
    peak_bytes: float
    other_s: float
    model_flops: float
    sigma: float


def best_mixed_pipelines(
    job: TrainingJob,
    cluster: Cluster,
    *,
    top: int = 5,
    attained: dict[int, float] | None = None,
    micro_batches: tuple[int, ...] = MICRO_BATCHES,
    recomputes: tuple[Recompute, ...] = (Recompute.NONE, Recompute.FULL),
) -> tuple[MixedPipeline, ...]:
    """Return the pipelines of `search_mixed_pipelines`."""
    allow = {"micro_batch": micro_batches, "recompute": tuple(int(value) for value in recomputes)}
    return search_mixed_pipelines(job, cluster, top=top, attained=attained, allow=allow).pipelines


def search_mixed_pipelines(
    job: TrainingJob,
    cluster: Cluster,
    *,
    top: int = 5,
    attained: dict[int, float] | None = None,
    allow: Mapping[str, tuple[int, ...]] | None = None,
    below_s: float = np.inf,
) -> MixedSearch:
    """Return the fastest pipelines over all groups that fit in memory.

    Parameters
    ----------
    attained : measured speed of a device of each group, by index, in any unit; the fastest group keeps its
        predicted time and the others are slower by what was measured instead of what is predicted.
    allow : the only values of ``tp``, ``dp``, ``pp``, ``micro_batch`` and ``recompute``, see `mixed_shapes`.
    below_s : only pipelines whose step is shorter are of interest.
    """
    kinds = equal_groups(cluster, attained or {})
    shapes = list(mixed_shapes(job, cluster, kinds, allow or {}))
    costs = _as_attained(_group_costs(job, cluster, shapes), attained or {})
    limits = [_limit_bytes(job, cluster, group) for group in range(len(cluster.groups))]
    queue = []
    for number, (strategy, layout) in enumerate(shapes):
        known = [costs.get((group, tp, stages, strategy)) for group, tp, stages in layout]
        entries = [entry for entry in known if entry is not None]
        if len(entries) == len(layout) and _can_hold(job, layout, entries, limits):
            queue.append((_bound_s(job, strategy, layout, entries), number, entries))
    queue.sort(key=lambda entry: entry[:2])
    hops = StageHops(job, cluster)
    best: list[MixedPipeline] = []
    num_fit = 0
    for bound_s, number, entries in queue:
        most_s = best[-1].step_s if len(best) == top else below_s
        if bound_s > most_s:
            break
        strategy, layout = shapes[number]
        hops_s = hops.seconds(strategy, layout)
        tied_s = hops.tied_s(strategy, layout)
        if _exchange_bound_s(job, strategy, layout, entries, hops_s) + tied_s > most_s:
            continue
        pipeline = _pipeline(job, cluster, strategy, layout, entries, hops_s, tied_s)
        if pipeline is not None:
            num_fit += 1
            best = _distinct([*best, pipeline], top)
    best = [pipeline for pipeline in best if pipeline.step_s < below_s]
    return MixedSearch(pipelines=tuple(best), num_layouts=len(shapes), num_fit=num_fit)


def _distinct(found: list[MixedPipeline], top: int) -> list[MixedPipeline]:
    """Return the fastest pipelines, those of the same time but in another order left out."""
    best: list[MixedPipeline] = []
    for pipeline in sorted(
        found, key=lambda p: (p.step_s, p.strategy.pp, tuple(s.num_layers for s in p.stages))
    ):
        if len(best) == top:
            break
        if not best or pipeline.step_s > best[-1].step_s * (1 + _SAME):
            best.append(pipeline)
    return best


def _bound_s(job: TrainingJob, strategy: Strategy, layout: "Layout", costs: "list[_GroupCosts]") -> float:
    """Return a time that no layer split beats: compute alone, dealt as if layers could be cut at will."""
    rounds = job.global_batch // (strategy.dp * strategy.micro_batch)
    rate = sum(stages / entry.layer_s for (_, _, stages), entry in zip(layout, costs, strict=True))
    least = min(entry.layer_s for entry in costs)
    layers = job.model.num_layers
    other = max(entry.other_s for entry in costs)
    return (rounds - 1) * layers / rate + layers * least + other


def _can_hold(job: TrainingJob, layout: "Layout", costs: "list[_GroupCosts]", limits: list[float]) -> bool:
    """Return whether the stages have room for all layers, and each for one."""
    room = [
        int(limits[group] / entry.peak_bytes * _ROUNDING)
        for (group, _, _), entry in zip(layout, costs, strict=True)
    ]
    held = sum(most * stages for most, (_, _, stages) in zip(room, layout, strict=True))
    return min(room) > 0 and held >= job.model.num_layers


def _exchange_bound_s(
    job: TrainingJob, strategy: Strategy, layout: "Layout", costs: "list[_GroupCosts]", hops_s: Floats
) -> float:
    """Return a time that no layer split beats with its hops: the slowest stage under layers cut at will.

    Stages fill up to one common time T, each from its exchanges e_i on: sum (T - e_i) / w_i = layers.
    """
    rounds = job.global_batch // (strategy.dp * strategy.micro_batch)
    layer_s = np.repeat([entry.layer_s for entry in costs], [stages for _, _, stages in layout])
    exchanges = exchanges_s(hops_s)
    head_s = _head_layers(job) * float(layer_s[-1])
    exchanges[-1] += head_s
    order = np.argsort(exchanges)
    rates = np.cumsum(1.0 / layer_s[order])
    filled = (job.model.num_layers + np.cumsum(exchanges[order] / layer_s[order])) / rates
    slowest = max(float(filled.min()), float((exchanges + layer_s).max()))
    least = job.model.num_layers * float(layer_s.min()) + head_s + 2.0 * float(hops_s.sum())
    return (rounds - 1) * slowest + least + max(entry.other_s for entry in costs)


GroupCosts = dict[tuple[int, int, int, Strategy], _GroupCosts]
"""By (group, tensor degree, stages, strategy)."""


def _group_costs(job: TrainingJob, cluster: Cluster, shapes: list[tuple[Strategy, Layout]]) -> GroupCosts:
    """Return the costs of every group under every strategy that some shape gives it, one table per group."""
    wanted: dict[int, dict[tuple[int, int, Strategy], Strategy]] = {}
    for strategy, layout in shapes:
        for group, tp, stages in layout:
            entries = wanted.setdefault(group, {})
            if (tp, stages, strategy) not in entries:
                entries[tp, stages, strategy] = _with_tensor_degree(strategy, tp)
    found: GroupCosts = {}
    for group, entries in wanted.items():
        rows = list(dict.fromkeys(entries.values()))
        configs, alone = ConfigTable.from_strategies(rows), cluster.group_cluster(group)
        table = times = evaluate(job, alone, configs)
        stack = device_stack(job.stack, alone.device)
        if stack.spares_ends:
            # A stage that gives up a layer for its head would hide the head that `slots` counts.
            times = evaluate(job, alone, configs, stack=replace(stack, spares_ends=False))
        most = np.array([-(-job.model.num_layers // row.pp) for row in rows])
        slots = (most + _head_layers(job)) * np.array(
            [job.global_batch // (row.dp * row.micro_batch) for row in rows]
        )
        busy = (
            times.forward_s
            + times.backward_s
            + times.recompute_s
            + times.tp_comm_s
            + times.ep_comm_s
            + times.host_s
        )
        costs = {
            row: _GroupCosts(
                layer_s=float(busy[i] / slots[i]),
                gradient_s=float(table.dp_comm_s[i] / most[i]),
                peak_bytes=float(table.peak_memory_bytes[i] / most[i]),
                other_s=float(table.optimizer_s[i] + table.fixed_s[i]),
                model_flops=table.model_flops,
                sigma=float(table.sigma[i]),
            )
            for i, row in enumerate(rows)
        }
        for (tp, stages, strategy), row in entries.items():
            found[group, tp, stages, strategy] = costs[row]
    return found


def _with_tensor_degree(strategy: Strategy, tp: int) -> Strategy:
    """Return the strategy of a stage with that tensor degree, its traffic inside a node and overlapped."""
    return replace(strategy, tp=tp, sequence_parallel=tp > 1, overlap_tp=tp > 1)


def _as_attained(costs: GroupCosts, attained: dict[int, float]) -> GroupCosts:
    """Return the costs with the measured ratios of the groups' speeds in place of the predicted ones."""
    if not attained:
        return costs
    device_s: dict[int, float] = {}
    for (group, tp, _, strategy), entry in costs.items():
        whole_s = entry.layer_s * tp / strategy.micro_batch
        device_s[group] = min(whole_s, device_s.get(group, np.inf))
    fastest = max(device_s, key=lambda group: (attained[group], -group))
    slower = {
        group: device_s[fastest] / device_s[group] * attained[fastest] / attained[group] for group in device_s
    }
    return {key: replace(entry, layer_s=entry.layer_s * slower[key[0]]) for key, entry in costs.items()}


def _pipeline(
    job: TrainingJob,
    cluster: Cluster,
    strategy: Strategy,
    layout: Layout,
    costs: list[_GroupCosts],
    hops: Floats,
    tied_s: float,
) -> MixedPipeline | None:
    """Return the pipeline with its best layer split, None if no split fits in memory.

    Parameters
    ----------
    hops : time of one hop behind every stage but the last. shape (stages - 1,) [s]
    """
    groups = [index for index, (_, _, stages) in enumerate(layout) for _ in range(stages)]
    num_layers = job.model.num_layers
    num_micro_batches = job.global_batch // (strategy.dp * strategy.micro_batch)
    layer_s = np.array([costs[g].layer_s for g in groups])
    share = layer_s + np.array([costs[g].gradient_s for g in groups]) / num_micro_batches
    limits = np.array([_limit_bytes(job, cluster, layout[g][0]) for g in groups])
    per_layer = np.array([costs[g].peak_bytes for g in groups])
    exchanges = exchanges_s(hops)
    base = exchanges.copy()
    head = _head_layers(job) * layer_s[-1]
    base[-1] += head
    outcome = solve_stage_split(
        StageSplitProblem(
            layer_s=np.repeat(share[:, None], num_layers, axis=1),
            base_s=base,
            num_micro_batches=num_micro_batches,
            layer_bytes=np.repeat(per_layer[:, None], num_layers, axis=1),
            limit_bytes=limits,
        )
    )
    if outcome.solution is None:
        return None
    counts = np.array(outcome.solution.num_layers)
    compute = counts * layer_s
    compute[-1] += head
    alone = (num_micro_batches - 1) * float(compute.max()) + float(compute.sum())
    busy = compute + exchanges
    whole = (num_micro_batches - 1) * float(busy.max()) + float(compute.sum() + 2.0 * hops.sum())
    gradients = counts * np.array([costs[g].gradient_s for g in groups])
    stages = _stages(layout, groups, counts, compute, gradients, per_layer, limits)
    return MixedPipeline(
        strategy=_with_tensor_degree(strategy, layout[0][1]),
        stages=stages,
        compute_s=alone,
        exposed_p2p_s=whole - alone,
        gradient_s=float(gradients.max()),
        tied_s=tied_s,
        other_s=max(c.other_s for c in costs),
        model_flops=costs[0].model_flops,
        sigma=max(c.sigma for c in costs),
    )


def _stages(
    layout: Layout,
    groups: list[int],
    counts: npt.NDArray[np.int64],
    compute_s: Floats,
    gradient_s: Floats,
    layer_bytes: Floats,
    limit_bytes: Floats,
) -> tuple[MixedStage, ...]:
    """Return the stages of a solved split; `groups` names each stage's entry of the layout."""
    return tuple(
        MixedStage(
            group=layout[entry][0],
            tp=layout[entry][1],
            num_layers=int(counts[i]),
            compute_s=float(compute_s[i]),
            gradient_s=float(gradient_s[i]),
            peak_memory_bytes=float(counts[i] * layer_bytes[i]),
            limit_bytes=float(limit_bytes[i]),
        )
        for i, entry in enumerate(groups)
    )


def _head_layers(job: TrainingJob) -> float:
    """Return how many layers the head is worth, by the weights that a token passes.

    The slowest stage of an even split holds it.
    """
    head = job.model.vocab * job.model.hidden
    layers = job.model.num_active_params - head * (1 if job.model.tied_head else 2)
    return head * job.model.num_layers / max(layers, head)


def _limit_bytes(job: TrainingJob, cluster: Cluster, group: int) -> float:
    """Return the predicted peak up to which a device of the group fits with 99 % probability."""
    sigma = memory_coefficients(job.stack).sigma
    return usable_bytes(cluster.groups[group].node.device) * float(np.exp(-_SAFE_DEVIATIONS * sigma))
