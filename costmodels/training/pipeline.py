r"""Length of a pipeline flush in closed form, for rows of configurations, and micro-batches held per stage.

Stages are three kinds: first (with the embedding), middle and last (with the head). On rank :math:`j` of
:math:`p` a flush of :math:`m` micro-batches lasts its own work :math:`m t_j`, the way in and out
:math:`\sum_{i<j} t_i`, and the waits for the ranks behind it, of which the warm-up forwards and the
cool-down backwards hide a part:

.. math:: T_j = m t_j + \sum_{i<j} t_i + \max(0, R_j - k_j F_j) + \max(0, R_j - k_j B_j),
          \quad R_j = \sum_{i>j} t_i,\ k_j = \min(m - 1, p - 1 - j)

(only the longer of the two waits when :math:`m \le p - j`: it is one and the same gap), and the flush lasts
:math:`\max_j T_j`. Equal stages give the familiar :math:`(m + p - 1)(F + B)`.

Exact for 1F1B with free sends when both ends are at least as heavy as the middle (or both at most), for equal
stages with sends, and for interleaving with equal stages; a lower bound (to 7 %) when one end is heavier and
the other lighter; with uneven ends and sends within about 1 %; interleaved with uneven ends a median of 0.2 %
off. `benchmarks/schedule_exactness.py` measures all of this against the recurrence of `pipeline_exact`.

References
----------
Narayanan et al., Efficient Large-Scale Language Model Training on GPU Clusters, SC 2021 (interleaving).
Qi et al., Zero Bubble Pipeline Parallelism, ICLR 2024. DeepSeek-V3 technical report, 2024 (DualPipe).
"""

import numpy as np
import numpy.typing as npt

from costmodels.training.pipeline_exact import StageTimes, exact_step_s, exact_timeline
from costmodels.training.pipeline_orders import Kind, Schedule, rank_orders

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


_BLOCK_ROWS = 16384
"""Rows worked on at once: their columns stay in the processor's cache, four times as fast."""


def _bound_s(forward_s: Floats, backward_s: Floats, pp: Floats, m: Floats, vpp: Floats) -> Floats:
    r"""Return the longest :math:`T_j` of the four ranks that can bind: first, second, last but one, last.

    With chunks the way in and out and the wait behind cross one chunk per rank, a rank runs
    :math:`2(p - 1 - j)` more chunks before it first waits, and what the first and last rank have above the
    others sits in one chunk, whose slower pace every group of `pp` micro-batches repeats on the other ranks.
    """
    chunked = vpp > 1
    mid_f = np.where(pp > 2, forward_s[1], np.minimum(forward_s[0], forward_s[2]))
    mid_b = np.where(pp > 2, backward_s[1], np.minimum(backward_s[0], backward_s[2]))
    chunk_f, chunk_b = mid_f / vpp, mid_b / vpp
    chunk, middle = chunk_f + chunk_b, mid_f + mid_b
    extra_in = forward_s[0] + backward_s[0] - middle
    extra_out = forward_s[2] + backward_s[2] - middle
    paced = np.where(chunked, pp - 1, 0.0)
    fed_in = extra_in + paced * np.maximum(extra_in, 0.0)
    fed_out = extra_out + paced * np.maximum(extra_out, 0.0)
    last = m * (middle + extra_out) + (pp - 1) * chunk + fed_in

    def rank(steps_f: Floats, steps_b: Floats, work: Floats, before: Floats, behind: Floats) -> Floats:
        """Return T_j of a rank with `behind` ranks behind it.

        Besides the way to the last rank and back, the rank right behind may hold it up: that one runs its own
        warm-up before the first backward.
        """
        ahead = np.where(chunked, np.where(m > pp, 2 * behind, pp - 1), np.minimum(behind, m - 1))
        twice = np.where(chunked, m > pp, m - 1 > behind)
        wait = behind * chunk + fed_out
        near = np.where(~chunked & (behind >= 2) & (m >= 2), np.maximum(behind + 1 - m, 1) * chunk, 0.0)
        near_hidden = np.where(m > behind, 1.0, 0.0)
        start = np.maximum(np.maximum(wait - ahead * steps_f, near - near_hidden * steps_f), 0.0)
        end = np.maximum(np.maximum(wait - ahead * steps_b, near - near_hidden * steps_b), 0.0)
        waits: Floats = np.where(twice, start + end, np.maximum(start, end))
        return m * work + before + waits

    first_f = np.where(chunked, chunk_f, forward_s[0])
    first_b = np.where(chunked, chunk_b, backward_s[0])
    out = np.maximum(last, rank(first_f, first_b, middle + extra_in, np.zeros_like(m), pp - 1))
    if bool(np.any(pp > 2)):
        second = rank(chunk_f, chunk_b, middle, chunk + fed_in, pp - 2)
        before_last = rank(chunk_f, chunk_b, middle, (pp - 2) * chunk + fed_in, np.ones_like(m))
        out = np.where(pp > 2, np.maximum(out, np.maximum(second, before_last)), out)
    bound: Floats = np.where(pp > 1, out, m * (forward_s[0] + backward_s[0]))
    return bound


def _hidden_sends(pp: Floats, m: Floats, vpp: Floats) -> Floats:
    """Return how many sends delay a flush of equal stages when sends run beside computation.

    1F1B keeps only as many micro-batches in flight as there are stages, so each round of `pp` of them waits
    for one way down and up; interleaving starts more and waits for the first way only. Exact with equal
    stages (interleaved: m a multiple of pp).
    """
    rounds = (m - 1) // pp
    plain = 2 * (pp - 1) * (rounds + 1) + 2 * np.maximum(m - rounds * pp - 2, 0)
    out: Floats = np.where(vpp > 1, 2 * (pp * vpp - 1), plain)
    return np.where(pp > 1, out, 0.0)


def _blocking_sends(pp: Floats, m: Floats, vpp: Floats) -> Floats:
    """Return how many sends lengthen a flush of equal stages when the sender waits for each.

    Exact with equal stages (p = 2: one send each way per micro-batch; interleaved: m a multiple of pp).
    """
    two = m + 1
    plain = np.where(m > 1, 2 * (m + pp - 1) - 3, 2 * (pp - 1))
    steady = (2 * vpp - 1) * m + 2 * (pp - 1) - 1
    warm = 2 * (pp * vpp - 1) + 2 * (pp - 1)
    chunks = np.where(m <= pp, warm, np.maximum(steady, warm))
    out: Floats = np.where(vpp > 1, chunks, np.where(pp == 2, two, plain))
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
    rows = forward_s.shape[1]
    out = np.empty(rows)
    pp, num_micro_batches, vpp = (np.broadcast_to(column, rows) for column in (pp, num_micro_batches, vpp))
    hop_s, overlap_p2p = np.broadcast_to(hop_s, rows), np.broadcast_to(overlap_p2p, rows)
    for start in range(0, rows, _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        out[block] = _block_s(
            forward_s[:, block],
            backward_s[:, block],
            pp[block],
            num_micro_batches[block],
            vpp[block],
            hop_s[block],
            overlap_p2p[block],
        )
    return out


def _block_s(
    forward_s: Floats,
    backward_s: Floats,
    pp: Ints,
    num_micro_batches: Ints,
    vpp: Ints,
    hop_s: Floats,
    overlap_p2p: npt.NDArray[np.bool_],
) -> Floats:
    p, m, v = (np.asarray(column, np.float64) for column in (pp, num_micro_batches, vpp))
    sends = np.where(overlap_p2p, _hidden_sends(p, m, v), _blocking_sends(p, m, v))
    out: Floats = _bound_s(forward_s, backward_s, p, m, v) + sends * hop_s
    if bool(np.any((v > 1) & (p > 1))):
        slowest = np.max(forward_s + backward_s, axis=0)
        rest = np.where(p > 1, m % p, 0.0)
        out = out + np.where(rest > 0, (v - 1) * (p - rest), 0.0) * slowest / v
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
