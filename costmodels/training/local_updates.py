"""Training islands that join rarely: local steps between reductions, and what they cost in staleness.

Every island takes `local_steps` optimizer steps alone, then the islands average their models (local SGD,
DiLoCo). With overlap the reduction runs under the next round (CO2, W. Sun et al., arXiv 2401.16265): it is
hidden if it takes no longer than the round, and the averaged model is one round old when it is used. This
changes the algorithm, not only its speed; it is never chosen unless asked for.
"""

from dataclasses import dataclass

__all__ = ["LocalUpdateCost", "local_update_cost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalUpdateCost:
    """Time of one step, averaged over a round, and what the algorithm gives up for it."""

    step_s: float
    exposed_s: float
    """Reduction time that each step still waits for."""
    staleness_steps: int
    """Age of the other islands' updates when they arrive, in optimizer steps."""


def local_update_cost(
    island_step_s: tuple[float, ...], reduce_s: float, *, local_steps: int, overlapped: bool
) -> LocalUpdateCost:
    """Return the cost of islands that average their models every `local_steps` steps.

    Parameters
    ----------
    island_step_s : step time of each island on its own share of the batch. [s]
    reduce_s : time to average the model over the joining links. [s]
    overlapped : whether the reduction runs under the next round.

    Examples
    --------
    >>> local_update_cost((1.0, 0.9), 12.0, local_steps=12, overlapped=True).exposed_s
    0.0
    """
    if not island_step_s or local_steps < 1 or reduce_s < 0 or min(island_step_s) <= 0:
        message = "island steps must be positive, local_steps at least 1 and reduce_s not negative"
        raise ValueError(message)
    step_s = max(island_step_s)
    left = max(0.0, reduce_s - local_steps * step_s) if overlapped else reduce_s
    return LocalUpdateCost(
        step_s=step_s + left / local_steps,
        exposed_s=left / local_steps,
        staleness_steps=2 * local_steps if overlapped else local_steps,
    )
