"""Whether a pipeline over some groups of a mixed cluster beats the best one over all of them."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

from costmodels.job import TrainingJob
from hardware.cluster import Cluster
from planner.training.mixed_plan import MixedPipeline, search_mixed_pipelines
from planner.training.mixed_shapes import MOST_ORDERED_GROUPS

__all__ = ["best_without_some"]


def best_without_some(
    job: TrainingJob,
    cluster: Cluster,
    best: MixedPipeline,
    attained: dict[int, float],
    allow: Mapping[str, tuple[int, ...]],
) -> tuple[tuple[int, ...], float] | None:
    """Return the groups whose pipeline is fastest and its step [s]; None if none beats all groups together.

    Two groups or more, and not all; micro-batch and recomputation are those of `best`. Clusters of more than
    `MOST_ORDERED_GROUPS` groups have too many subsets to try.
    """
    found: tuple[tuple[int, ...], float] | None = None
    alike = {"micro_batch": (best.strategy.micro_batch,), "recompute": (int(best.strategy.recompute),)}
    count = len(cluster.groups)
    if count > MOST_ORDERED_GROUPS:
        return None
    for chosen in (c for size in range(2, count) for c in combinations(range(count), size)):
        pipelines = search_mixed_pipelines(
            job,
            _only(cluster, chosen),
            top=1,
            attained={i: attained[group] for i, group in enumerate(chosen)} if attained else None,
            allow={**allow, **alike},
            below_s=best.step_s if found is None else found[1],
        ).pipelines
        if pipelines:
            found = (chosen, pipelines[0].step_s)
    return found


def _only(cluster: Cluster, chosen: tuple[int, ...]) -> Cluster:
    """Return the cluster of these groups alone."""
    groups = tuple(cluster.groups[index] for index in chosen)
    used = {name for group in groups for name in group.fabrics}
    fabrics = tuple(fabric for fabric in cluster.fabrics if fabric.name in used)
    return replace(cluster, groups=groups, fabrics=fabrics, measured_links=None)
