"""What would make a job fit: the nearest strategy, the bytes it misses, and the cluster that would do."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from costmodels.job import TrainingJob
from costmodels.stacks import device_stack
from hardware.cluster import Cluster
from hardware.errors import InfeasibleError, PlannerError
from hardware.units import format_quantity
from planner.training.memory_fit import memory_of
from planner.training.search import Nearest
from planner.training.space import TrainingSpace, training_space

__all__ = ["no_strategy", "nothing_fits"]

_FACTORS = (2, 4, 8, 16)
"""Multiples of the nodes that are tried."""


def no_strategy(
    space: TrainingSpace, cluster: Cluster, *, allow: Mapping[str, tuple[int, ...]]
) -> InfeasibleError:
    """Return the error of a space without a single legal strategy: what emptied it, what would do."""
    rules = [e for e in space.excluded() if e.count]
    reasons = "".join(f"\n  - {e.rule} ({e.count} dropped): {e.why}" for e in rules)
    message = f"no legal strategy uses all {cluster.num_devices} devices of {cluster.name}:{reasons}"
    others = "".join(f"\n  - {sentence}" for sentence in _legal_nearby(space.job, cluster, allow))
    return InfeasibleError(message + others, [e.rule for e in rules])


def _legal_nearby(job: TrainingJob, cluster: Cluster, allow: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return which part of every node, and which batch near the one asked for, legal strategies use."""

    def legal(job: TrainingJob, cluster: Cluster) -> bool:
        return any(len(configs) for configs in _space(job, cluster, allow).chunks())

    found = []
    per_node = cluster.groups[0].node.num_devices
    powers = [2**power for power in range(per_node.bit_length() - 1, -1, -1)]
    parts = [used for used in powers if used < per_node]
    used = _first(parts, lambda used: legal(job, cluster.with_devices_per_node(used)))
    if used is not None:
        found.append(f"it would with {used} of the {per_node} devices of every node (devices_per_node)")
    batch = max(round(job.global_batch / cluster.num_devices), 1) * cluster.num_devices
    others = [batch] if batch != job.global_batch else []
    if _first(others, lambda batch: legal(replace(job, global_batch=batch), cluster)) is not None:
        found.append(f"it would with global_batch {batch}")
    return found


def _space(job: TrainingJob, cluster: Cluster, allow: Mapping[str, tuple[int, ...]]) -> TrainingSpace:
    return training_space(
        job,
        world=cluster.num_devices,
        levels=cluster.levels,
        flash_attention=device_stack(job.stack, cluster.device).flash,
        allow=allow,
    )


def nothing_fits(
    job: TrainingJob,
    cluster: Cluster,
    nearest: Nearest,
    *,
    allow: Mapping[str, tuple[int, ...]],
    min_probability: float,
) -> InfeasibleError:
    """Return the error of a job that fits nowhere, with the nearest plan and what would make it fit."""
    s = nearest.strategy
    degrees = ", ".join(f"{n} {getattr(s, n)}" for n in ("tp", "pp", "cp", "dp", "ep") if getattr(s, n) > 1)
    missing = nearest.peak_memory_bytes - nearest.capacity_bytes
    short = (
        f"{format_quantity(missing, 'B', digits=4)} ({missing:.0f} bytes) are missing on each device"
        if missing > 0
        else f"it fits with probability {nearest.fits_probability:.3f}, asked for {min_probability:g}"
    )
    lines = [
        f"nothing fits: the nearest plan ({degrees or 'one device'}, micro-batch {s.micro_batch}, "
        f"recompute {s.recompute.name.lower()}, zero {s.zero}) needs "
        f"{format_quantity(nearest.peak_memory_bytes, 'B', digits=4)} of "
        f"{format_quantity(nearest.capacity_bytes, 'B', digits=4)}; {short}",
        *_remedies(job, cluster, allow, min_probability),
    ]
    return InfeasibleError("\n  - ".join(lines), ["memory-fits"])


def _remedies(
    job: TrainingJob, cluster: Cluster, allow: Mapping[str, tuple[int, ...]], min_probability: float
) -> list[str]:
    """Return sentences on what was tried and made it fit, or that nothing tried did."""

    def fits(job: TrainingJob, cluster: Cluster) -> bool:
        memory, space = memory_of(job, cluster), _space(job, cluster, allow)
        return any(bool((memory(c).fits_probability >= min_probability).any()) for c in space.chunks())

    found = []
    factor = _first(_FACTORS, lambda factor: fits(job, cluster.with_nodes(factor * cluster.num_nodes)))
    if factor is None:
        found.append(f"it would not fit on {_FACTORS[-1]} times the nodes either")
    else:
        found.append(f"it would fit on {factor * cluster.num_nodes} nodes ({factor} times as many)")
    lengths = [job.seq_len // factor for factor in _FACTORS if job.seq_len >= factor]
    seq_len = _first(lengths, lambda seq_len: fits(replace(job, seq_len=seq_len), cluster))
    if seq_len is not None:
        found.append(f"it would fit here with seq_len {seq_len}")
    return found


def _first(values: Iterable[int], question: Callable[[int], bool]) -> int | None:
    """Return the first value that the question holds for; none where it cannot be asked (a cluster of fixed
    size, say).
    """
    for value in values:
        with suppress(PlannerError):
            if question(value):
                return value
    return None
