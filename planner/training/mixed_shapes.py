"""Every division of unlike groups into replicas, tensor degrees and stages, in every order of the groups."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import permutations, product

from costmodels.job import TrainingJob
from costmodels.strategy import Recompute, Strategy
from hardware.cluster import Cluster
from planner.training.stage_hops import Layout

__all__ = ["MICRO_BATCHES", "MOST_ORDERED_GROUPS", "RECOMPUTES", "equal_groups", "mixed_shapes"]

MICRO_BATCHES = (1, 2, 4, 8)
RECOMPUTES = (int(Recompute.NONE), int(Recompute.FULL))
"""What is tried where nobody asks for something else."""
MOST_ORDERED_GROUPS = 4
"""Up to this many groups every order along the pipeline is tried; more keep the cluster's order."""


def equal_groups(cluster: Cluster, attained: dict[int, float]) -> list[int]:
    """Return for every group the first one that it equals but for its name."""
    alike = [(replace(group, name=""), attained.get(index)) for index, group in enumerate(cluster.groups)]
    return [alike.index(entry) for entry in alike]


def mixed_shapes(
    job: TrainingJob,
    cluster: Cluster,
    kinds: list[int],
    allow: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[Strategy, Layout]]:
    """Yield every division of the groups into replicas, tensor degrees and stages that uses all devices.

    Equal groups in each other's places are one layout.

    Parameters
    ----------
    kinds : for every group the first one that it equals, see `equal_groups`.
    allow : values of ``tp`` (of every stage), ``dp`` and ``pp`` (stages in all), left out any; of
        ``micro_batch`` and ``recompute``, left out the usual ones.
    """
    sizes = [group.num_devices for group in cluster.groups]
    micro_batches = allow.get("micro_batch", MICRO_BATCHES)
    recomputes = tuple(Recompute(value) for value in allow.get("recompute", RECOMPUTES))

    def allowed(name: str, value: int) -> bool:
        return value in allow.get(name, (value,))

    for dp in (d for d in range(1, min(sizes) + 1) if job.global_batch % d == 0 and allowed("dp", d)):
        options = []
        for group in cluster.groups:
            per_node = group.node.num_devices
            options.append(
                [
                    (tp, group.num_devices // (tp * dp))
                    for tp in range(1, per_node + 1)
                    if per_node % tp == 0 and group.num_devices % (tp * dp) == 0 and allowed("tp", tp)
                ]
            )
        for choice in product(*options):
            pp = sum(stages for _, stages in choice)
            if pp > job.model.num_layers or not allowed("pp", pp):
                continue
            layouts = [layout for layout in _orders(choice) if _is_first(layout, kinds)]
            for micro_batch, recompute in product(micro_batches, recomputes):
                if job.global_batch // dp % micro_batch == 0:
                    strategy = Strategy(
                        tp=choice[0][0], pp=pp, dp=dp, micro_batch=micro_batch, recompute=recompute
                    )
                    yield from ((strategy, layout) for layout in layouts)


def _orders(choice: tuple[tuple[int, int], ...]) -> Iterator[Layout]:
    entries = [(group, tp, stages) for group, (tp, stages) in enumerate(choice)]
    if len(entries) > MOST_ORDERED_GROUPS:
        yield tuple(entries)
        return
    yield from permutations(entries)


def _is_first(layout: Layout, kinds: list[int]) -> bool:
    """Return whether equal groups stand in their own order."""
    last: dict[int, int] = {}
    for group, _, _ in layout:
        if last.get(kinds[group], -1) > group:
            return False
        last[kinds[group]] = group
    return True
