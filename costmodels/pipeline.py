r"""Length of a pipeline flush in closed form, for rows of configurations, and micro-batches held per stage.

Stages are three kinds: first (with the embedding), middle and last (with the head). On rank :math:`j` of
:math:`p` a flush of :math:`m` micro-batches lasts its own work :math:`m t_j`, the way in and out
:math:`\sum_{i<j} t_i`, and the waits for the ranks behind it, of which the warm-up forwards and the
cool-down backwards hide a part:

.. math:: T_j = m t_j + \sum_{i<j} t_i + \max(0, R_j - k_j F_j) + \max(0, R_j - k_j B_j),
          \quad R_j = \sum_{i>j} t_i,\ k_j = \min(m - 1, p - 1 - j)

(only the longer of the two waits when :math:`m \le p - j`: it is one and the same gap), and the flush lasts
:math:`\max_j T_j`. Equal stages give the familiar :math:`(m + p - 1)(F + B)`.
`benchmarks/schedule_exactness.py` measures all of this against the exact recurrence of `pipeline_exact`.

References
----------
Narayanan et al., Efficient Large-Scale Language Model Training on GPU Clusters, SC 2021 (interleaving).
Qi et al., Zero Bubble Pipeline Parallelism, ICLR 2024. DeepSeek-V3 technical report, 2024 (DualPipe).
"""

import numpy as np
import numpy.typing as npt

from costmodels.pipeline_exact import StageTimes, exact_step_s, exact_timeline
from costmodels.pipeline_orders import Kind, Schedule, rank_orders

__all__ = [
    "Kind",
    "Schedule",
    "StageTimes",
    "bubble_s",
    "exact_step_s",
    "exact_timeline",
    "flush_s",
    "in_flight",
    "rank_orders",
    "zero_bubble_s",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def bubble_s(
    forward_s: Floats,
    backward_s: Floats,
    pp: Ints,
    num_micro_batches: Ints,
    vpp: Ints | int = 1,
) -> Floats:
    r"""Return the idle time of one flush of (interleaved) 1F1B with equal stages and free sends.

    :math:`(p - 1)(F + B)/v`, exact when the micro-batches are a multiple of `pp` (or `vpp` is 1). Otherwise
    every chunk but one waits for the ragged last group: :math:`(v - 1)(p - m \bmod p)(F + B)/v` more, an
    approximation (Megatron-LM refuses such counts).

    Parameters
    ----------
    forward_s, backward_s : one micro-batch on one rank, all chunks together. shape (rows,) [s]
    pp : pipeline stages. shape (rows,)
    num_micro_batches : per flush and replica. shape (rows,)
    vpp : chunks per rank. shape (rows,)
    """
    work = (forward_s + backward_s) / vpp
    rest = np.where(np.asarray(vpp) > 1, num_micro_batches % pp, 0)
    ragged = np.where(rest > 0, (np.asarray(vpp) - 1) * (pp - rest), 0)
    out: Floats = work * (pp - 1 + ragged)
    return out


def _rank_s(
    forward_s: Floats, backward_s: Floats, before_s: Floats, behind_s: Floats, held: Ints, m: Ints
) -> Floats:
    """Return T_j of the module; `held` forwards run before the rank first waits for a backward."""
    hidden = np.minimum(held, m - 1)
    start = np.maximum(behind_s - hidden * forward_s, 0.0)
    end = np.maximum(behind_s - hidden * backward_s, 0.0)
    waits = np.where(m - 1 > held, start + end, np.maximum(start, end))
    out: Floats = m * (forward_s + backward_s) + before_s + waits
    return out


def _plain_s(forward_s: Floats, backward_s: Floats, pp: Ints, m: Ints) -> Floats:
    """Return the 1F1B flush of first, middle and last stages; the longest of the four ranks that can bind."""
    total = forward_s + backward_s
    middles = np.maximum(pp - 2, 0)
    alone = m * total[0]
    last = _rank_s(
        forward_s[2], backward_s[2], total[0] + middles * total[1], np.zeros_like(alone), 0 * pp, m
    )
    first = _rank_s(
        forward_s[0], backward_s[0], np.zeros_like(alone), middles * total[1] + total[2],
        pp - 1, m,
    )  # fmt: skip
    second = _rank_s(
        forward_s[1], backward_s[1], total[0], np.maximum(pp - 3, 0) * total[1] + total[2],
        np.maximum(pp - 2, 0), m,
    )  # fmt: skip
    before_last = _rank_s(
        forward_s[1], backward_s[1], total[0] + np.maximum(pp - 3, 0) * total[1], total[2],
        np.ones_like(pp), m,
    )  # fmt: skip
    inner = np.where(pp > 2, np.maximum(second, before_last), 0.0)
    out: Floats = np.where(pp > 1, np.maximum(np.maximum(first, last), inner), alone)
    return out


def _interleaved_s(forward_s: Floats, backward_s: Floats, pp: Ints, m: Ints, vpp: Ints) -> Floats:
    r"""Return the interleaved flush; the longest of the four ranks that can bind.

    The formula of `_rank_s` with chunks: the way in and out and the wait behind cross one chunk per rank, and
    a rank runs :math:`2(p - 1 - j)` more chunks before its first backward. What the first and last rank have
    above the others sits in the first and the last chunk.
    """
    mid_f = np.where(pp > 2, forward_s[1], np.minimum(forward_s[0], forward_s[2]))
    mid_b = np.where(pp > 2, backward_s[1], np.minimum(backward_s[0], backward_s[2]))
    chunk_f, chunk_b = mid_f / vpp, mid_b / vpp
    chunk = chunk_f + chunk_b
    total = forward_s + backward_s
    extra_in, extra_out = total[0] - mid_f - mid_b, total[2] - mid_f - mid_b

    def rank(j: Ints, work: Floats) -> Floats:
        behind = (pp - 1 - j) * chunk + np.where(j < pp - 1, extra_out, 0.0)
        before = j * chunk + np.where(j > 0, extra_in, 0.0)
        ahead = np.where(m > pp, 2 * (pp - 1 - j), pp - 1)
        start = np.maximum(behind - ahead * chunk_f, 0.0)
        end = np.maximum(behind - ahead * chunk_b, 0.0)
        waits = np.where(m > pp, start + end, np.maximum(start, end))
        out: Floats = m * work + before + waits
        return out

    ends = np.maximum(rank(0 * pp, total[0]), rank(pp - 1, total[2]))
    inner = np.maximum(rank(np.ones_like(pp), total[1]), rank(pp - 2, total[1]))
    rest = m % pp
    slowest = np.maximum(np.maximum(total[0], total[2]), np.where(pp > 2, total[1], 0.0))
    ragged = np.where(rest > 0, (vpp - 1) * (pp - rest), 0) * slowest / vpp
    flush: Floats = np.where(pp > 2, np.maximum(ends, inner), ends) + ragged
    return flush


def _hidden_sends(pp: Ints, m: Ints, vpp: Ints) -> Floats:
    """Return how many sends delay a flush of equal stages when sends run beside computation.

    1F1B keeps only as many micro-batches in flight as there are stages, so each round of `pp` of them waits
    for one way down and up; interleaving starts more and waits for the first way only. Exact with equal
    stages (interleaved: m a multiple of pp).
    """
    rounds = (m - 1) // pp
    plain = 2 * (pp - 1) * (rounds + 1) + 2 * np.maximum(m - rounds * pp - 2, 0)
    out: Floats = np.where(vpp > 1, 2 * (pp * vpp - 1), plain).astype(np.float64)
    return np.where(pp > 1, out, 0.0)


def _blocking_sends(pp: Ints, m: Ints, vpp: Ints) -> Floats:
    """Return how many sends lengthen a flush of equal stages when the sender waits for each.

    Exact with equal stages (p = 2: one send each way per micro-batch; interleaved: m a multiple of pp).
    """
    two = m + 1
    plain = np.where(m > 1, 2 * (m + pp - 1) - 3, 2 * (pp - 1))
    steady = (2 * vpp - 1) * m + 2 * (pp - 1) - 1
    warm = 2 * (pp * vpp - 1) + 2 * (pp - 1)
    chunks = np.where(m <= pp, warm, np.maximum(steady, warm))
    out: Floats = np.where(vpp > 1, chunks, np.where(pp == 2, two, plain)).astype(np.float64)
    return np.where(pp > 1, out, 0.0)


def flush_s(
    forward_s: Floats,
    backward_s: Floats,
    *,
    pp: Ints,
    num_micro_batches: Ints,
    vpp: Ints,
    hop_s: Floats,
    overlap_p2p: npt.NDArray[np.bool_],
) -> Floats:
    """Return the seconds of one flush of 1F1B (vpp 1) or interleaved 1F1B (vpp above 1), one per row.

    Parameters
    ----------
    forward_s, backward_s : one micro-batch on the first, a middle and the last rank, all chunks together;
        with one stage only the first is read, with two the middle is not. shape (3, rows) [s]
    pp, num_micro_batches, vpp : shape of the pipeline. shape (rows,)
    hop_s : one send between neighbouring stages (each chunk boundary sends once each way). shape (rows,) [s]
    overlap_p2p : sends run beside computation; otherwise the sender waits. shape (rows,)
    """
    plain = _plain_s(forward_s, backward_s, pp, num_micro_batches)
    chunked = _interleaved_s(forward_s, backward_s, pp, num_micro_batches, vpp)
    sends = np.where(
        overlap_p2p, _hidden_sends(pp, num_micro_batches, vpp), _blocking_sends(pp, num_micro_batches, vpp)
    )
    out: Floats = np.where(vpp > 1, np.where(pp > 1, chunked, plain), plain) + sends * hop_s
    return out


def zero_bubble_s(
    schedule: Schedule,
    forward_s: Floats,
    input_grad_s: Floats,
    weight_grad_s: Floats,
    *,
    pp: Ints,
    num_micro_batches: Ints,
    hop_s: Floats | float = 0.0,
) -> Floats:
    r"""Return the seconds of one flush of a zero-bubble schedule with equal stages.

    ZB-H1 idles :math:`(p-1)(F + B - \min(W, F))` (Qi et al.: F + B - W, while weight gradients fit the gap
    that they fill). ZB-V idles :math:`(p-1)(\max(F,B,W) - \min(F,B,W))`: nothing when the three passes take
    equally long, an estimate where they do not. DualPipe idles :math:`(p/2 - 1)(\max(F, B+W) + B - 3W)`, not
    below 0, with a forward under a backward (DeepSeek-V3).
    Sends are hidden in steady state and delay the way down and up once.

    Parameters
    ----------
    schedule : ZB_H1, ZB_V or DUALPIPE.
    forward_s, input_grad_s, weight_grad_s : one micro-batch on one rank: F, B, W. shape (rows,) [s]
    pp, num_micro_batches : shape of the pipeline. shape (rows,)
    hop_s : one send. shape (rows,) [s]
    """
    f, b, w = forward_s, input_grad_s, weight_grad_s
    if schedule is Schedule.ZB_H1:
        idle = (pp - 1) * (f + b - np.minimum(w, f))
    elif schedule is Schedule.ZB_V:
        idle = (pp - 1) * (np.maximum(np.maximum(f, b), w) - np.minimum(np.minimum(f, b), w))
    elif schedule is Schedule.DUALPIPE:
        idle = np.maximum(pp / 2 - 1, 0) * np.maximum(np.maximum(f, b + w) + b - 3 * w, 0.0)
    else:
        message = f"{schedule.name} does not split weight gradients off; accepted: ZB_H1, ZB_V, DUALPIPE"
        raise ValueError(message)
    idle = np.where(pp > 1, idle, 0.0)
    out: Floats = num_micro_batches * (f + b + w) + idle + np.where(pp > 1, 2 * (pp - 1), 0) * hop_s
    return out


def in_flight(
    schedule: Schedule, stage: Ints, pp: Ints, num_micro_batches: Ints, vpp: Ints | int = 1
) -> Floats:
    r"""Return how many micro-batches' activations a rank holds at its peak, in units of all its layers.

    GPipe m; 1F1B and ZB-H1's forwards :math:`\min(m, p - s)`, ZB-H1 with held-back weight gradients
    :math:`\min(m, p)`; interleaved :math:`\min(m v, 2(p - s - 1) + (v - 1)p + 1)/v`, on the first rank
    :math:`p (1 + (p-1)/(pv))`; ZB-V at most :math:`p`; DualPipe :math:`p + 1`.

    Parameters
    ----------
    schedule : order of tasks.
    stage : rank in the pipeline, 0 first. shape (rows,)
    pp, num_micro_batches, vpp : shape of the pipeline. shape (rows,)
    """
    m = num_micro_batches
    chunks = np.asarray(vpp)
    held: npt.NDArray[np.generic]
    if schedule is Schedule.GPIPE:
        held = m + 0 * stage
    elif schedule is Schedule.ONE_F_ONE_B:
        held = np.minimum(m, pp - stage)
    elif schedule is Schedule.INTERLEAVED:
        started = np.where(m == pp, m * chunks, 2 * (pp - stage - 1) + (chunks - 1) * pp + 1)
        held = np.where(chunks > 1, np.minimum(m * chunks, started) / chunks, np.minimum(m, pp - stage))
    elif schedule is Schedule.DUALPIPE:
        held = np.minimum(m, pp + 1) + 0 * stage
    else:
        held = np.minimum(m, pp) + 0 * stage
    return held.astype(np.float64)
