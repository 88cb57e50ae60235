r"""What checkpoints cost a training run, and how often to take them.

Copying states off the device can hide behind forward and backward, while they do not change; what does not
fit there stalls the step (Maurya et al., DataStates-LLM, HPDC 2024). The interval that loses least balances
the stall against the work lost at a failure: :math:`\tau = \sqrt{2 C M}` (Young, 1974).
"""

import numpy as np
import numpy.typing as npt

__all__ = ["best_interval_s", "checkpoint_stall_s", "lost_frac"]

Floats = npt.NDArray[np.float64]


def checkpoint_stall_s(
    state_bytes: Floats, copy_bytes_per_s: Floats, hidden_s: Floats, commit_s: Floats
) -> Floats:
    """Return the seconds by which one checkpoint lengthens a step.

    Parameters
    ----------
    state_bytes : what one device saves. shape (rows,) [B]
    copy_bytes_per_s : from the device to the host (or straight to storage). shape (rows,)
    hidden_s : forward and backward time, in which states stay as they are; 0 for a blocking checkpoint.
    commit_s : what cannot overlap at all. shape (rows,) [s]
    """
    return np.maximum(state_bytes / copy_bytes_per_s - hidden_s, 0.0) + commit_s


def best_interval_s(stall_s: Floats, mean_time_between_failures_s: Floats) -> Floats:
    """Return the time between checkpoints that loses the least."""
    return np.sqrt(2 * stall_s * mean_time_between_failures_s)


def lost_frac(
    interval_s: Floats, stall_s: Floats, restart_s: Floats, mean_time_between_failures_s: Floats
) -> Floats:
    """Return the share of time lost to checkpoints, redone work and restarts, to first order in 1/MTBF.

    Parameters
    ----------
    interval_s : time between checkpoints. [s]
    stall_s : what one checkpoint costs. [s]
    restart_s : from a failure to the first new step: detection, scheduling, loading. [s]
    mean_time_between_failures_s : of the whole job (one device's over the number of devices). [s]
    """
    return stall_s / interval_s + (interval_s / 2 + restart_s) / mean_time_between_failures_s
