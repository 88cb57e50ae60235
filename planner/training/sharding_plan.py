"""Full sharding at several levels of a cluster: which groups divide weights, gradients and optimizer state.

On clusters with packages inside nodes the three kinds of state may end at different borders
(`costmodels.sharding_levels`). Every nested choice of borders is costed for every legal strategy of one
stage; those that divide everything alike are in the ordinary space already.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from costmodels.cost_table import CostTable
from costmodels.job import TrainingJob
from costmodels.sharding_levels import ShardLevels, level_costs
from costmodels.stacks import device_stack
from costmodels.strategy import ConfigTable, Strategy
from hardware.cluster import Cluster
from planner.plan import Check, PlannedSharding
from planner.request import TrainRequest, allowed_values
from planner.training.search_checks import search_checks
from planner.training.space import training_space

__all__ = ["LevelPlan", "best_level_plans", "level_checks", "planned_sharding"]

Index = npt.NDArray[np.intp]

_ONE_STAGE = {"pp": (1,), "cp": (1,), "vpp": (1,), "zero": (3,), "shard_group": (0,)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LevelPlan:
    """One strategy with its borders and its cost (a table of one row)."""

    strategy: Strategy
    levels: ShardLevels
    costs: CostTable

    @property
    def step_s(self) -> float:
        """Time of one optimizer step."""
        return float(self.costs.step_s[0])


def planned_sharding(levels: ShardLevels) -> PlannedSharding:
    """Return the borders as a plan file states them."""
    return PlannedSharding(
        weight_ranks=levels.weight_ranks,
        backward_ranks=levels.backward_ranks,
        gradient_ranks=levels.gradient_ranks,
        optimizer_ranks=levels.optimizer_ranks,
        quantized=levels.quantized,
    )


def best_level_plans(
    request: TrainRequest, job: TrainingJob, cluster: Cluster
) -> tuple[list[LevelPlan], int]:
    """Return the fastest of each strategy's borders that fit, best first, and how many rows were costed.

    Nothing for nodes without packages inside, whose borders the ordinary space tries, nor for models with
    routed experts, whose own groups follow other borders.
    """
    inside = [level for level in cluster.levels if level.size <= cluster.devices_per_node]
    if len(inside) < 2 or job.model.num_active_params < job.model.num_params:
        return [], 0
    allow = allowed_values(request)
    narrowed = {name: values for name, values in _ONE_STAGE.items() if name in allow}
    if any(values[0] not in allow[name] for name, values in narrowed.items()):
        return [], 0
    space = training_space(
        job,
        world=cluster.num_devices,
        levels=cluster.levels,
        flash_attention=device_stack(job.stack, cluster.device).flash,
        allow=dict(allow) | _ONE_STAGE,
    )
    best: list[LevelPlan] = []
    count = 0
    for table in space.chunks():
        rows, levels = _crossed(table, cluster, quantized=request.quantized_sharding)
        if not levels:
            continue
        count += len(rows)
        costs = level_costs(job, cluster, rows, levels)
        fits = np.flatnonzero(costs.fits_probability >= request.min_fits_probability)
        order = fits[np.argsort(costs.step_s[fits], kind="stable")]
        best += [
            LevelPlan(strategy=rows.strategy(row), levels=levels[row], costs=costs.take(np.array([row])))
            for row in _first_of_each(rows, order, request.top)
        ]
    return sorted(best, key=lambda plan: plan.step_s)[: request.top], count


def level_checks(plans: Sequence[LevelPlan], job: TrainingJob, cluster: Cluster) -> tuple[Check, ...]:
    """Return what the costs of these plans are checked for, see `search_checks`."""
    table = ConfigTable.from_strategies([plan.strategy for plan in plans])
    return search_checks(
        len(plans),
        cluster,
        lambda at, rows: level_costs(job, at, table.take(rows), [plans[i].levels for i in rows]).step_s,
    )


def _crossed(
    table: ConfigTable, cluster: Cluster, *, quantized: bool
) -> tuple[ConfigTable, list[ShardLevels]]:
    """Return every row with every choice of borders that its tensor degree leaves."""
    index: list[int] = []
    levels: list[ShardLevels] = []
    for tp in np.unique(table.tp).tolist():
        own = np.flatnonzero(table.tp == tp).tolist()
        for ends in _borders(cluster, tp, int(table.dp[own[0]]), quantized=quantized):
            index += own
            levels += [ends] * len(own)
    return table.take(np.array(index, dtype=np.intp)), levels


def _first_of_each(rows: ConfigTable, order: Index, top: int) -> list[int]:
    """Return the fastest row of each of the fastest strategies."""
    found: dict[Strategy, int] = {}
    for row in order.tolist():
        if len(found) == top:
            break
        found.setdefault(rows.strategy(row), row)
    return list(found.values())


def _borders(cluster: Cluster, tp: int, dp: int, *, quantized: bool) -> Iterator[ShardLevels]:
    """Yield all nested groups of replicas that end at borders of the cluster, alike ones left out."""
    sizes = [level.size // tp for level in cluster.levels if level.size % tp == 0]
    ends = sorted({size for size in sizes if 1 < size < dp and dp % size == 0} | {dp})
    for weights, backward, gradients, optimizer in product(ends, repeat=4):
        nested = backward <= weights <= optimizer and gradients <= optimizer
        whole = weights % backward == 0 and optimizer % weights == 0 and optimizer % gradients == 0
        alike = weights == backward == gradients == optimizer
        if nested and whole and not (alike and not quantized):
            yield replace(
                ShardLevels(
                    weight_ranks=weights,
                    backward_ranks=backward,
                    gradient_ranks=gradients,
                    optimizer_ranks=optimizer,
                ),
                quantized=quantized,
            )
