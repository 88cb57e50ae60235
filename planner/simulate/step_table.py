"""Iteration times from a table of measured prompts and decode steps by batch, as Splitwise published them.

Columns: ``prompt_size`` (tokens of each prompt), ``batch_size``, ``token_size`` (generated tokens),
``prompt_time`` and ``token_time`` in milliseconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import numpy as np
import numpy.typing as npt

from hardware.errors import SpecError
from planner.simulate.timing import GridTimer

__all__ = ["batch_exponent", "step_table_timer"]

Floats = npt.NDArray[np.float64]

_MIXED_FACTOR = 1.1
"""Prompt iteration with decodes riding along over one without; P. Patel et al., Splitwise, ISCA 2024."""
_BATCH_EXPONENT = 1.61
"""What `batch_exponent` gives for the six tables of Splitwise with batches of 1 to 64: Llama-2-70B on 4 and 8
devices and BLOOM-176B on 8, A100 and H100. Without those of one model it is 1.58 or 1.62."""
_EXPONENTS = np.arange(1.0, 2.51, 0.01)


def step_table_timer(
    rows: Iterable[Mapping[str, str]],
    *,
    max_prefill_tokens: int = 8192,
    batch_exponent: float = _BATCH_EXPONENT,
) -> GridTimer:
    """Return a timer that reproduces the table: decodes by batch *and* by cached tokens.

    A batch whose prompts took less time than a smaller batch of the same prompts did not fit in memory; it
    is left out. The time per cached token comes from the sweep of prompt lengths at batch one.

    Parameters
    ----------
    batch_exponent : p of a + b batch^p, which continues the decode times beyond the largest batch.

    Raises
    ------
    SpecError
        if the rows hold no sweep of batches.
    """
    prompt_s, token_s = _medians(rows)
    by_tokens = _valid_prompts(prompt_s)
    size, base_s, kv_each = _batch_sweep(token_s, by_tokens)
    base_kv = size * kv_each
    growth_s = _slope(size**batch_exponent, base_s)
    single = sorted((token_s[p, 1][1], token_s[p, 1][0]) for p, b in token_s if b == 1)
    kv, at_kv = np.array(single).T
    per_token_s = _slope(kv, at_kv) if len(single) > 1 else 0.0
    sizes = np.array(sorted(by_tokens), dtype=float)
    times = np.maximum.accumulate([by_tokens[int(n)] for n in sizes])

    def seconds(prompt: Floats, context: Floats, num_seqs: Floats, kv_tokens: Floats) -> Floats:
        del context
        low = np.interp(prompt, sizes, times)
        slope = (times[-1] - times[-2]) / (sizes[-1] - sizes[-2])
        prefill = low + np.maximum(prompt - sizes[-1], 0.0) * slope
        beyond = np.maximum(num_seqs, size[-1]) ** batch_exponent - size[-1] ** batch_exponent
        decode = np.interp(num_seqs, size, base_s) + growth_s * beyond
        usual_kv = np.interp(num_seqs, size, base_kv)
        decode = decode + per_token_s * (kv_tokens - np.maximum(usual_kv, num_seqs / size[-1] * base_kv[-1]))
        mixed = prefill * np.where(num_seqs > 0, _MIXED_FACTOR, 1.0)
        time_s: Floats = np.where(prompt > 0, mixed, decode)
        return time_s

    return GridTimer(seconds, max_prefill_tokens=max_prefill_tokens)


def batch_exponent(tables: Sequence[Iterable[Mapping[str, str]]]) -> float:
    """Return the p with which a + b batch^p, fitted below, best foretells each table's largest batch.

    Splitwise's tables bend upwards: a step grows 2.6 to 7 times as much from 32 to 64 sequences as from 16
    to 32.
    """
    sweeps = []
    for rows in tables:
        prompt_s, token_s = _medians(rows)
        size, time_s, _ = _batch_sweep(token_s, _valid_prompts(prompt_s))
        sweeps.append((size, time_s))

    def loss(p: float) -> float:
        """Return the sum of squared logarithms of foretold over measured."""
        total = 0.0
        for size, time_s in sweeps:
            growth_s = _slope(size[:-1] ** p, time_s[:-1])
            foretold_s = time_s[-2] + growth_s * (size[-1] ** p - size[-2] ** p)
            total += float(np.log(foretold_s / time_s[-1]) ** 2)
        return total

    return float(min(_EXPONENTS, key=loss))


def _batch_sweep(
    token_s: dict[tuple[int, int], tuple[float, float]], by_tokens: dict[int, float]
) -> tuple[Floats, Floats, Floats]:
    """Return batch sizes, decode times and cached tokens each, of the prompt size with most batches."""
    shape = min((p for p, _ in token_s), key=lambda p: -sum(1 for q, _ in token_s if q == p))
    batches = sorted(b for p, b in token_s if p == shape and p * b in by_tokens)
    if len(batches) < 2:
        raise SpecError("step table", ["needs token_time for at least two batch sizes of one prompt size"])
    time_s: Floats = np.maximum.accumulate([token_s[shape, b][0] for b in batches])
    return np.array(batches, dtype=float), time_s, np.array([token_s[shape, b][1] for b in batches])


def _slope(x: Floats, y: Floats) -> float:
    """Return the slope of the least-squares line, never negative."""
    return max(float(np.polyfit(x, y, 1)[0]), 0.0)


def _medians(
    rows: Iterable[Mapping[str, str]],
) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], tuple[float, float]]]:
    """Return by (prompt, batch) the prompt time, and the decode time with its mean cached tokens each."""
    prompts: dict[tuple[int, int], list[float]] = defaultdict(list)
    tokens: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        key = int(row["prompt_size"]), int(row["batch_size"])
        prompts[key].append(float(row["prompt_time"]) * 1e-3)
        cached = key[0] + float(row["token_size"]) / 2.0
        tokens[key].append((float(row["token_time"]) * 1e-3, cached))
    return (
        {key: median(times) for key, times in prompts.items()},
        {key: (median(t for t, _ in pairs), median(c for _, c in pairs)) for key, pairs in tokens.items()},
    )


def _valid_prompts(prompt_s: dict[tuple[int, int], float]) -> dict[int, float]:
    """Return prompt time by total tokens, without batches that ran faster than smaller ones."""
    valid: dict[int, float] = {}
    for prompt, batch in sorted(prompt_s):
        smaller = [t for (p, b), t in prompt_s.items() if p == prompt and b < batch]
        if not smaller or prompt_s[prompt, batch] >= max(smaller):
            total = prompt * batch
            valid[total] = min(prompt_s[prompt, batch], valid.get(total, float("inf")))
    return valid
