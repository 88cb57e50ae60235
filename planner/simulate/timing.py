"""Times of engine iterations, answered in about a microsecond from lazily evaluated grids.

A cost model answers for columns of iterations; a simulator asks for one iteration at a time, a hundred
thousand times. `GridTimer` asks the cost model for whole grids, only where the simulation goes, and
interpolates between them.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["AffineTimer", "GridTimer", "IterationTime", "Load", "Skew", "StepTimer", "SumTimer"]

Floats = npt.NDArray[np.float64]

IterationTime = Callable[[Floats, Floats, Floats, Floats], Floats]
"""Columns (prompt tokens, cached context of the prompt chunk, decoding sequences, their cached tokens in all)
to seconds per iteration. Zero prompt tokens is a pure decode iteration; zero sequences a pure prefill."""

_PURE_KAPPA = 0.105
_MIXED_KAPPA = 0.24
_SPLIT_BELOW = 0.8
_SPLIT_FRAC = 0.03
_CONTEXT_NODES = (0, 2048, 16384, 131072)
_KV_NODES = (1.0, *(float(b << i) for i in range(16) for b in (4, 5, 6, 7)))
_LAST_KV = len(_KV_NODES) - 1
_BLOCK_KV_NODES = (64, 512, 1024, 2048, 4096, 8192, 32768)
_SEQ_NODES = (*range(1, 9), *(int(2 ** (i / 4)) for i in range(13, 60)))
_LAST_BLOCK_KV = len(_BLOCK_KV_NODES) - 1
_LAST_CONTEXT = len(_CONTEXT_NODES) - 1
_BLOCK_SEQ_NODES = (1, 2, 4, *(int(2 ** (i / 2)) for i in range(6, 30)))
_FINE_TOKENS, _FINE_UP_TO = 16, 2560
_COARSE_TOKENS = 128


@dataclass(slots=True)
class Load:
    """What one iteration of one rank holds."""

    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    """Query-key pairs of the prompt chunks, sum of c h + c (c + 1) / 2 for chunk c at context h."""
    num_seqs: int = 0
    """Decoding sequences."""
    kv_tokens: float = 0.0
    """Their cached tokens."""
    longest_kv: float = 0.0
    """Cached tokens of the longest of them; 0 takes all as equally long."""


class StepTimer(Protocol):
    """Seconds of one iteration."""

    def decode_s(self, num_seqs: int, kv_tokens: float, longest_kv: float = 0.0) -> float:
        """Return the time of a pure decode iteration."""
        ...

    def step_s(self, load: Load) -> float:
        """Return the time of an iteration that holds prompt tokens."""
        ...

    def lockstep_s(self, loads: Sequence[Load]) -> float:
        """Return the time of one iteration of ranks that wait for each other."""
        ...

    def prompt_bound_s(self, prompt_tokens: float) -> float:
        """Return a time that a prompt takes at the least, however it is batched."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Skew:
    """What attention over sequences of unequal length costs beyond its mean length.

    The last thread blocks to finish are those of long sequences, and run almost alone. The time lies between
    that of equal sequences of the mean length and of the longest one, at a share of kappa S / (n h): one long
    block's time, kappa of it exposed, over the rounds n h / S of all blocks on S resident ones.

    Notes
    -----
    kappa is the median over the skewed-length attention fits of LLMServingSim 2.0 (github
    casys-kaist/LLMServingSim @0d3de68 and @4806d57; Llama-3.1-8B on an RTX PRO 6000 and an RTX 4090, 8 to 256
    sequences): 0.105 when only decodes run (one block per KV head), 0.24 beside prompts (one per query head).
    Two resident blocks per multiprocessor. Where the blocks would fill less than 0.8 of those places
    FlashAttention splits the sequences (its num_splits heuristic), and a share of 0.03 is left.
    """

    num_sms: int
    num_heads: int
    """Query heads on one device."""
    num_kv_heads: int

    def decode_frac(self, num_seqs: int) -> float:
        """Return the share in a pure decode iteration."""
        rounds = num_seqs * self.num_kv_heads / (2.0 * self.num_sms)
        return _PURE_KAPPA / rounds if rounds >= _SPLIT_BELOW else _SPLIT_FRAC

    def mixed_frac(self, num_seqs: int) -> float:
        """Return the share beside prompt chunks."""
        return min(_MIXED_KAPPA * 2.0 * self.num_sms / (num_seqs * self.num_heads), 1.0)


class GridTimer:
    """Interpolates an `IterationTime` on grids that are evaluated when first needed.

    Pure decodes: one row per number of sequences over their mean cached tokens, linear between nodes a factor
    1.25 or less apart; rows between the nodes of sequences are linear mixtures of their neighbours.

    With prompts: the time of as many prompt tokens alone, plus what sequences and contexts change of it. The
    first is a staircase, since matmuls pad tokens to tiles, and is sampled every 16 tokens (128 from 2,560
    up); the second is smooth and mixed from the blocks around the number n of sequences and their mean cached
    tokens. A block of n' sequences is read at n - n' more prompt tokens: the tokens of all stay exact.

    Parameters
    ----------
    iteration_s : the cost model.
    max_prefill_tokens : prompt tokens of the largest iteration; beyond, the last cell is extended.
    skew : what unequal lengths cost; None takes every sequence as long as the mean.
    """

    def __init__(
        self, iteration_s: IterationTime, *, max_prefill_tokens: int = 2048, skew: Skew | None = None
    ) -> None:
        self._iteration_s = iteration_s
        self._skew = skew
        self._decode_fracs: dict[int, float] = {}
        self._mixed_fracs: dict[int, float] = {}
        self._node_rows: dict[int, Floats] = {}
        self._rows: dict[int, list[float]] = {}
        self._blocks: dict[tuple[int, int], list[list[float]]] = {}
        up_to = min(max(max_prefill_tokens, 64), 16384) + 1024
        self._prefill_nodes = nodes = _prefill_nodes(up_to)
        self._last_cell = len(nodes) - 2
        # The cell of every number of prompt tokens; larger ones extend the last.
        self._cells = [max(bisect_right(nodes, n, 0, len(nodes) - 1) - 1, 0) for n in range(nodes[-1])]
        self._seq_cells: dict[int, tuple[int, int, float]] = {}
        self._alone_s = _TokenCurve(iteration_s, self._prefill_nodes[-1])

    def decode_s(self, num_seqs: int, kv_tokens: float, longest_kv: float = 0.0) -> float:
        """Return the time of a pure decode iteration."""
        even_s = self._even_s(num_seqs, kv_tokens / num_seqs)
        if self._skew is None or longest_kv * num_seqs <= kv_tokens:
            return even_s
        frac = self._decode_fracs.get(num_seqs)
        if frac is None:
            frac = self._decode_fracs[num_seqs] = self._skew.decode_frac(num_seqs)
        return even_s + frac * (self._even_s(num_seqs, longest_kv) - even_s)

    def _even_s(self, num_seqs: int, kv_mean: float) -> float:
        """Return the time of a decode iteration of sequences of one length."""
        row = self._rows.get(num_seqs) or self._row(num_seqs)
        i = bisect_right(_KV_NODES, kv_mean, 0, _LAST_KV) - 1
        low_kv = _KV_NODES[i]
        low = row[i]
        return low + (row[i + 1] - low) * (kv_mean - low_kv) / (_KV_NODES[i + 1] - low_kv)

    def step_s(self, load: Load) -> float:
        """Return the time of an iteration with prompt tokens."""
        num_seqs = load.num_seqs
        tokens = load.prefill_tokens
        context = load.prefill_pairs / tokens - 0.5 * (tokens + 1)
        alone_s = self._alone_s(tokens + num_seqs)
        if num_seqs == 0:
            block = self._blocks.get((0, 0)) or self._block(0, 0)
            return alone_s + _blend(block, *self._token_cell(tokens), *_context_cell(context))
        kv_mean = load.kv_tokens / num_seqs
        base_s = alone_s + self._mixed_s(tokens, context, num_seqs, kv_mean)
        if self._skew is None or load.longest_kv <= kv_mean:
            return base_s
        frac = self._mixed_fracs.get(num_seqs)
        if frac is None:
            frac = self._mixed_fracs[num_seqs] = self._skew.mixed_frac(num_seqs)
        return base_s + frac * (self._even_s(num_seqs, load.longest_kv) - self._even_s(num_seqs, kv_mean))

    def _mixed_s(self, tokens: int, context: float, num_seqs: int, kv_mean: float) -> float:
        """Return what sequences of one length and the context add, from the four blocks around them."""
        low, high, u = self._seq_cells.get(num_seqs) or self._seq_cell(num_seqs)
        j = bisect_right(_BLOCK_KV_NODES, kv_mean, 1, _LAST_BLOCK_KV) - 1
        low_kv, high_kv = _BLOCK_KV_NODES[j], _BLOCK_KV_NODES[j + 1]
        v = (kv_mean - low_kv) / (high_kv - low_kv)
        blocks = self._blocks
        column, along = _context_cell(context)
        total_s = 0.0
        for node, share in ((low, 1.0 - u), (high, u)):
            if share == 0.0:
                continue
            moved = tokens + num_seqs - node
            row, across = self._token_cell(moved if moved > 1 else 1)
            a = _blend(blocks.get((node, low_kv)) or self._block(node, low_kv), row, across, column, along)
            b = _blend(blocks.get((node, high_kv)) or self._block(node, high_kv), row, across, column, along)
            total_s += share * (a + (b - a) * v)
        return total_s

    def lockstep_s(self, loads: Sequence[Load]) -> float:
        """Return the time of the slowest rank."""
        return max(
            self.step_s(load)
            if load.prefill_tokens
            else self.decode_s(load.num_seqs, load.kv_tokens, load.longest_kv)
            for load in loads
            if load.prefill_tokens or load.num_seqs
        )

    def prompt_bound_s(self, prompt_tokens: float) -> float:
        """Return the prompt's tokens at the best time per token of any iteration without context."""
        return prompt_tokens * self._alone_s.least_per_token_s()

    def _token_cell(self, tokens: int) -> tuple[int, float]:
        """Return the cell of a number of prompt tokens and the place in it."""
        nodes = self._prefill_nodes
        i = self._cells[tokens] if tokens < len(self._cells) else self._last_cell
        return i, (tokens - nodes[i]) / (nodes[i + 1] - nodes[i])

    def _seq_cell(self, num_seqs: int) -> tuple[int, int, float]:
        """Return the nodes around a number of sequences and the place between them."""
        i = bisect_right(_BLOCK_SEQ_NODES, num_seqs) - 1
        low, high = _BLOCK_SEQ_NODES[i], _BLOCK_SEQ_NODES[i + 1]
        cell = low, high, (num_seqs - low) / (high - low)
        self._seq_cells[num_seqs] = cell
        return cell

    def _row(self, num_seqs: int) -> list[float]:
        """Return the decode times of `num_seqs` sequences over `_KV_NODES`."""
        at = bisect_right(_SEQ_NODES, num_seqs) - 1
        low, high = _SEQ_NODES[at], _SEQ_NODES[at + 1]
        if low not in self._node_rows or high not in self._node_rows:
            self._evaluate_rows(at)
        share = (num_seqs - low) / (high - low)
        row: list[float] = (self._node_rows[low] * (1.0 - share) + self._node_rows[high] * share).tolist()
        self._rows[num_seqs] = row
        return row

    def _evaluate_rows(self, at: int) -> None:
        """Ask the cost model for the rows around node `at`, a few in one call."""
        nodes = [n for n in _SEQ_NODES[max(at - 3, 0) : at + 5] if n not in self._node_rows]
        seqs, kv = np.meshgrid(np.array(nodes, dtype=np.float64), np.array(_KV_NODES), indexing="ij")
        flat = seqs.ravel()
        zeros = np.zeros_like(flat)
        times = self._iteration_s(zeros, zeros, flat, flat * kv.ravel()).reshape(seqs.shape)
        self._node_rows.update(zip(nodes, times, strict=True))

    def _block(self, num_seqs: int, kv_mean: int) -> list[list[float]]:
        """Return what sequences and contexts add to as many tokens alone; ask for neighbours at once."""
        wanted = [0]
        if num_seqs:
            at = _BLOCK_KV_NODES.index(kv_mean)
            near = _BLOCK_KV_NODES[max(at - 1, 0) : at + 3]
            wanted = [kv for kv in near if (num_seqs, kv) not in self._blocks]
        nodes = np.array(self._prefill_nodes, dtype=np.float64)
        tokens, context = np.meshgrid(nodes, np.array(_CONTEXT_NODES, dtype=np.float64), indexing="ij")
        each, both = tokens.size, tokens.size * len(wanted)
        work = np.zeros((4, both + len(nodes)))
        work[0, :both], work[1, :both] = (
            np.tile(tokens.ravel(), len(wanted)),
            np.tile(context.ravel(), len(wanted)),
        )
        work[2, :both], work[3, :both] = num_seqs, np.repeat(np.array(wanted) * num_seqs, each)
        work[0, both:] = nodes + num_seqs
        times = self._iteration_s(*work)
        added = times[:both].reshape(len(wanted), *tokens.shape) - times[both:, None]
        for kv, block in zip(wanted, added.tolist(), strict=True):
            self._blocks[num_seqs, kv] = block
        return self._blocks[num_seqs, kv_mean]


def _context_cell(context: float) -> tuple[int, float]:
    """Return the cell of a context and the place in it; one below zero (several short prompts) extends the
    first.
    """
    j = bisect_right(_CONTEXT_NODES, context, 1, _LAST_CONTEXT) - 1
    low = _CONTEXT_NODES[j]
    return j, (context - low) / (_CONTEXT_NODES[j + 1] - low)


def _blend(block: list[list[float]], row: int, across: float, column: int, along: float) -> float:
    """Return the bilinear value of a block at a place in a cell."""
    low, high = block[row], block[row + 1]
    a = low[column]
    a += (low[column + 1] - a) * along
    b = high[column]
    return a + (b + (high[column + 1] - b) * along - a) * across


class _TokenCurve:
    """Time of an iteration of one prompt without context, by its tokens; sampled when first needed."""

    def __init__(self, iteration_s: IterationTime, up_to: int) -> None:
        self._iteration_s = iteration_s
        fine = [1, *range(_FINE_TOKENS, min(up_to, _FINE_UP_TO) + 1, _FINE_TOKENS)]
        coarse = range(_FINE_UP_TO + _COARSE_TOKENS, up_to + _COARSE_TOKENS, _COARSE_TOKENS)
        self._nodes: list[int] = [*fine, *coarse]
        self._last = len(self._nodes) - 2
        self._times_s: list[float] = []

    def __call__(self, tokens: int) -> float:
        """Return the time, linear between nodes and beyond the last."""
        times = self._times_s or self._sample()
        i = tokens // _FINE_TOKENS
        if tokens >= _FINE_UP_TO:
            i = _FINE_UP_TO // _FINE_TOKENS + (tokens - _FINE_UP_TO) // _COARSE_TOKENS
        i = min(i, self._last)
        low, low_s = self._nodes[i], times[i]
        return low_s + (times[i + 1] - low_s) * (tokens - low) / (self._nodes[i + 1] - low)

    def least_per_token_s(self) -> float:
        """Return the least time per token of any number of tokens."""
        times = self._times_s or self._sample()
        return min(time_s / n for time_s, n in zip(times, self._nodes, strict=True))

    def _sample(self) -> list[float]:
        tokens = np.array(self._nodes, dtype=np.float64)
        zeros = np.zeros_like(tokens)
        times: list[float] = self._iteration_s(tokens, zeros, zeros, zeros).tolist()
        self._times_s = times
        return times


def _prefill_nodes(up_to: int) -> list[int]:
    nodes = [1, 16, 64, 128, 256, 512, 1024, 1536, *(n << i for i in range(6) for n in (2048, 3072)), 131072]
    keep = next((i for i, n in enumerate(nodes) if n >= up_to), len(nodes) - 1)
    return nodes[: max(keep + 1, 2)]


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineTimer:
    """Iteration times as sums of coefficients, the form that DistServe and others fit.

    Notes
    -----
    prefill = a + b sum(n) + c sum(n^2); decode = a + b sum(context) + c batch, with a second set of
    coefficients from `large_batch` sequences up. Y. Zhong et al., DistServe, OSDI 2024.
    """

    prefill: tuple[float, float, float]
    decode_small: tuple[float, float, float]
    decode_large: tuple[float, float, float]
    large_batch: int
    overhead_s: float = 0.0
    overhead_per_token_s: float = 0.0

    def decode_s(self, num_seqs: int, kv_tokens: float, longest_kv: float = 0.0) -> float:
        """Return the time of a pure decode iteration; lengths count by their sum only."""
        del longest_kv
        a, b, c = self.decode_small if num_seqs < self.large_batch else self.decode_large
        return a + b * kv_tokens + c * num_seqs + self.overhead_s + self.overhead_per_token_s * kv_tokens

    def step_s(self, load: Load) -> float:
        """Return the time of an iteration with whole prompts, decodes riding along if there are any."""
        a, b, c = self.prefill
        squares = 2.0 * load.prefill_pairs - load.prefill_tokens
        prefill_s = a + b * load.prefill_tokens + c * squares
        prefill_s += self.overhead_s + self.overhead_per_token_s * load.prefill_tokens
        return prefill_s + (self.decode_s(load.num_seqs, load.kv_tokens) if load.num_seqs else 0.0)

    def lockstep_s(self, loads: Sequence[Load]) -> float:
        """Return the time of the slowest rank."""
        return max(
            self.step_s(x) if x.prefill_tokens else self.decode_s(x.num_seqs, x.kv_tokens)
            for x in loads
            if x.prefill_tokens or x.num_seqs
        )

    def prompt_bound_s(self, prompt_tokens: float) -> float:
        """Return the parts that grow with the prompt; constants could be shared by many prompts."""
        _, b, c = self.prefill
        return prompt_tokens * (b + c * prompt_tokens + self.overhead_per_token_s)


class SumTimer:
    """A rank's own time, plus a time that depends on the tokens of all ranks together (expert layers)."""

    def __init__(self, own: GridTimer, shared_s: Callable[[Sequence[int]], float]) -> None:
        self._own = own
        self._shared_s = shared_s

    def decode_s(self, num_seqs: int, kv_tokens: float, longest_kv: float = 0.0) -> float:
        """Return the time of a pure decode iteration of a single rank."""
        return self._own.decode_s(num_seqs, kv_tokens, longest_kv) + self._shared_s((num_seqs,))

    def step_s(self, load: Load) -> float:
        """Return the time of an iteration with prompt tokens of a single rank."""
        return self._own.step_s(load) + self._shared_s((load.prefill_tokens + load.num_seqs,))

    def lockstep_s(self, loads: Sequence[Load]) -> float:
        """Return the slowest rank's own time plus the shared time of all tokens."""
        tokens = [load.prefill_tokens + load.num_seqs for load in loads]
        return self._own.lockstep_s(loads) + self._shared_s(tokens)

    def prompt_bound_s(self, prompt_tokens: float) -> float:
        """Return the bound of the rank's own time."""
        return self._own.prompt_bound_s(prompt_tokens)
