"""Iteration times from measured tables of one model's layers on one device.

The tables (CSV, plain or gzip, microseconds) are those of LLMServingSim 2.0's profiler: ``attention`` of one
layer by (prompt chunk, its cached context, decoding sequences, their cached tokens each), ``dense`` per layer
operation by tokens, ``per_sequence`` for head and sampler, and ``moe`` by tokens and activated experts. They
hold no communication; that comes from the caller.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hardware.errors import InputError, SpecError
from planner.simulate.timing import GridTimer, Skew, StepTimer, SumTimer

__all__ = ["LayerProfile", "profile_timer", "read_layer_profile"]

Floats = npt.NDArray[np.float64]

_PER_LAYER = {
    "layernorm": 2,
    "qkv_proj": 1,
    "qk_norm": 1,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
}
"""Operations of a layer and how often each runs; two norms per decoder layer."""
_ONCE = ("embedding", "final_layernorm")
_REDUCTIONS_PER_LAYER = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Curve:
    """A measured function of one size, linear between its points and beyond the last."""

    at: Floats
    time_s: Floats

    def __call__(self, x: Floats) -> Floats:
        inside = np.interp(x, self.at, self.time_s)
        if len(self.at) < 2:
            return inside
        slope = (self.time_s[-1] - self.time_s[-2]) / (self.at[-1] - self.at[-2])
        extended: Floats = inside + np.maximum(x - self.at[-1], 0.0) * max(slope, 0.0)
        return extended


@dataclass(frozen=True, slots=True, eq=False)
class _Plane:
    """A measured function of (size, context): linear in context, a power law between sizes."""

    size: Floats
    context: Floats
    time_s: Floats
    """shape (sizes, contexts); complete."""

    def __call__(self, size: Floats, context: Floats) -> Floats:
        j, v = _cell(self.context, context)
        i, _ = _cell(self.size, size)
        u = np.log(np.maximum(size, self.size[0]) / self.size[i]) / np.log(self.size[i + 1] / self.size[i])
        low = _floor(self.time_s[i, j] * (1 - v) + self.time_s[i, j + 1] * v)
        high = _floor(self.time_s[i + 1, j] * (1 - v) + self.time_s[i + 1, j + 1] * v)
        time_s: Floats = np.exp(np.log(low) * (1 - u) + np.log(high) * u)
        return time_s


@dataclass(frozen=True, slots=True, eq=False)
class _MixedFactor:
    """Attention time of a mixed batch over the sum of its halves, on one regular grid, linear in logs."""

    axes: tuple[Floats, Floats, Floats, Floats]
    factor: npt.NDArray[np.float64]

    def __call__(self, *at: Floats) -> Floats:
        corners = [
            _cell(axis, np.clip(np.log1p(x), axis[0], axis[-1]))
            for axis, x in zip(self.axes, at, strict=True)
        ]
        total = np.zeros_like(at[0])
        for bits in range(16):
            weight = np.ones_like(at[0])
            index = []
            for axis, (cell, frac) in enumerate(corners):
                upper = bits >> axis & 1
                weight = weight * (frac if upper else 1.0 - frac)
                index.append(cell + upper)
            total += weight * self.factor[tuple(index)]
        return total


@dataclass(frozen=True, slots=True, eq=False)
class LayerProfile:
    """Measured layer times of one model, device and tensor-parallel degree, in seconds."""

    layer: _Curve
    """Token-wise operations of one layer by tokens."""
    once: _Curve
    """Embedding and last norm by tokens."""
    head: _Curve
    """Projection to the vocabulary and sampling by sequences."""
    prefill: _Plane
    decode: _Plane
    mixed: tuple[_MixedFactor, ...]
    experts: tuple[tuple[float, _Curve], ...] = ()
    """Expert layer by activated experts, each by tokens; empty for a dense model."""

    def attention_s(self, chunk: Floats, context: Floats, num_seqs: Floats, kv_each: Floats) -> Floats:
        """Return the attention time of one layer."""
        prefill_s = np.where(chunk > 0, self.prefill(np.maximum(chunk, 1.0), context), 0.0)
        decode_s = np.where(num_seqs > 0, self.decode(np.maximum(num_seqs, 1.0), kv_each), 0.0)
        both = (chunk > 0) & (num_seqs > 0)
        if not both.any():
            return prefill_s + decode_s
        factor = np.mean([f(chunk, context, num_seqs, kv_each) for f in self.mixed], axis=0)
        return (prefill_s + decode_s) * np.where(both, factor, 1.0)

    def experts_s(self, tokens: float, activated: float) -> float:
        """Return the time of one expert layer, linear in activated experts between the measured counts."""
        counts = [count for count, _ in self.experts]
        times = [float(curve(np.array([tokens]))[0]) for _, curve in self.experts]
        return float(np.interp(activated, counts, times))


def read_layer_profile(prefix: str | Path) -> LayerProfile:
    """Return the tables ``<prefix>_attention.csv.gz``, ``_dense``, ``_per_sequence`` and, if there, ``_moe``.

    Raises
    ------
    InputError
        if a table is missing; SpecError if one has the wrong columns or no usable rows.
    """
    attention = _read(
        prefix, "attention", ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    )
    dense = _by_name(_read(prefix, "dense", ("layer", "tokens", "time_us")))
    head = _by_name(_read(prefix, "per_sequence", ("layer", "sequences", "time_us")))
    missing = [name for name in ("qkv_proj", "o_proj", "layernorm") if name not in dense]
    if missing:
        where = f"{prefix}_dense"
        raise SpecError(where, [f"layer {name} is missing" for name in missing])
    points = {tuple(float(x) for x in row[:4]): float(row[4]) * 1e-6 for row in attention}
    prefill = _plane({(c, h): t for (c, h, n, _), t in points.items() if n == 0})
    decode = _plane({(n, kv): t for (c, _, n, kv), t in points.items() if c == 0})
    moe_path = _path(prefix, "moe", required=False)
    experts = _experts(_read(prefix, "moe", ("tokens", "activated_experts", "time_us"))) if moe_path else ()
    return LayerProfile(
        layer=_sum([(dense[name], count) for name, count in _PER_LAYER.items() if name in dense]),
        once=_sum([(dense[name], 1) for name in _ONCE if name in dense]),
        head=_sum([(curve, 1) for curve in head.values()]),
        prefill=prefill,
        decode=decode,
        mixed=_mixed_factors(points, prefill, decode),
        experts=experts,
    )


def profile_timer(
    profile: LayerProfile,
    *,
    num_layers: int,
    reduce_s: Callable[[Floats], Floats] | None = None,
    experts_s: Callable[[Sequence[int]], float] | None = None,
    host_s: float = 0.0,
    token_budget: int = 2048,
    skew: Skew | None = None,
) -> StepTimer:
    """Return a timer of a model with `num_layers` such layers.

    Parameters
    ----------
    reduce_s : time of one tensor-parallel reduction by tokens; two run per layer.
    experts_s : time of one expert layer, with its exchange, by the tokens of each rank in lockstep.
    skew : what unequal lengths cost in attention.
    host_s : time per iteration in which the device waits for the host.
    """

    def iteration_s(chunk: Floats, context: Floats, num_seqs: Floats, kv_tokens: Floats) -> Floats:
        tokens = chunk + num_seqs
        layer_s = profile.layer(tokens)
        layer_s = layer_s + profile.attention_s(
            chunk, context, num_seqs, kv_tokens / np.maximum(num_seqs, 1.0)
        )
        if reduce_s is not None:
            layer_s = layer_s + _REDUCTIONS_PER_LAYER * reduce_s(tokens)
        sampled = num_seqs + np.minimum(chunk, 1.0)
        return num_layers * layer_s + profile.once(tokens) + profile.head(sampled) + host_s

    own = GridTimer(iteration_s, max_prefill_tokens=token_budget, skew=skew)
    if experts_s is None:
        return own
    memo: dict[tuple[int, ...], float] = {}

    def shared_s(tokens: Sequence[int]) -> float:
        key = tuple(tokens)
        if key not in memo:
            memo[key] = num_layers * experts_s(key)
        return memo[key]

    return SumTimer(own, shared_s)


def _cell(axis: Floats, x: Floats) -> tuple[npt.NDArray[np.intp], Floats]:
    """Return the cell of each value and the place in it; the outer cells extend beyond the axis."""
    cell = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, len(axis) - 2)
    return cell, (x - axis[cell]) / (axis[cell + 1] - axis[cell])


def _floor(time_s: Floats) -> Floats:
    """Keep an extrapolated time above zero, so that its logarithm exists."""
    return np.maximum(time_s, 1e-7)


def _path(prefix: str | Path, table: str, *, required: bool = True) -> Path | None:
    for suffix in (".csv", ".csv.gz"):
        path = Path(f"{prefix}_{table}{suffix}")
        if path.exists():
            return path
    if required:
        message = (
            f"{prefix}_{table}.csv.gz: no such table (a layer profile needs attention, dense, per_sequence)"
        )
        raise InputError(message)
    return None


def _read(prefix: str | Path, table: str, columns: tuple[str, ...]) -> list[list[str]]:
    path = _path(prefix, table)
    if path is None:
        return []
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        message = f"{path}: cannot be read as a CSV file ({error})"
        raise InputError(message) from error
    rows = list(csv.reader(text.splitlines()))
    header = rows[0] if rows else []
    missing = [name for name in columns if name not in header]
    if missing or len(rows) < 2:
        found = f"found: {', '.join(header) or 'nothing'}"
        raise SpecError(str(path), [f"column {name} is missing; {found}" for name in missing] or ["no rows"])
    at = [header.index(name) for name in columns]
    picked = [[row[i] for i in at] for row in rows[1:]]
    bad = [i for i, row in enumerate(picked) if not _is_number(row[-1])]
    if bad:
        raise SpecError(
            str(path), [f"line {i + 2}: {columns[-1]}: {picked[i][-1]!r} is no time" for i in bad[:10]]
        )
    return picked


def _is_number(text: str) -> bool:
    try:
        return float(text) >= 0.0
    except ValueError:
        return False


def _by_name(rows: list[list[str]]) -> dict[str, _Curve]:
    points: dict[str, dict[float, float]] = defaultdict(dict)
    for name, size, time_us in rows:
        points[name][float(size)] = float(time_us) * 1e-6
    return {name: _curve(p) for name, p in points.items()}


def _curve(points: dict[float, float]) -> _Curve:
    at = sorted(points)
    return _Curve(np.array(at), np.array([points[x] for x in at]))


def _sum(curves: list[tuple[_Curve, int]]) -> _Curve:
    if not curves:
        return _Curve(np.ones(1), np.zeros(1))
    at = np.unique(np.concatenate([curve.at for curve, _ in curves]))
    return _Curve(at, np.sum([count * curve(at) for curve, count in curves], axis=0))


def _plane(points: dict[tuple[float, float], float]) -> _Plane:
    """Return a complete plane; a size that lacks some contexts is filled linearly along its own."""
    sizes = sorted({s for s, _ in points})
    contexts = sorted({c for _, c in points})
    rows = []
    for size in sizes:
        known = sorted(c for s, c in points if s == size)
        rows.append(_Curve(np.array(known), np.array([points[size, c] for c in known]))(np.array(contexts)))
    return _Plane(np.array(sizes), np.array(contexts), np.array(rows))


def _mixed_factors(
    points: dict[tuple[float, ...], float], prefill: _Plane, decode: _Plane
) -> tuple[_MixedFactor, ...]:
    """Return one factor grid per regular sub-grid of the mixed measurements.

    The tables hold up to two product grids (powers of two, and powers of one and a half); each is found by
    the sizes of its prompt chunks.
    """
    mixed = {key: t for key, t in points.items() if key[0] > 0 and key[2] > 0}
    families: dict[frozenset[tuple[float, ...]], list[float]] = defaultdict(list)
    for chunk in sorted({key[0] for key in mixed}):
        families[frozenset(key[1:] for key in mixed if key[0] == chunk)].append(chunk)
    grids = []
    for others, chunks in families.items():
        axes = [np.array(chunks), *(np.array(sorted({o[i] for o in others})) for i in range(3))]
        if min(len(axis) for axis in axes) < 2 or len(others) != np.prod([len(axis) for axis in axes[1:]]):
            continue
        mesh = [m.ravel() for m in np.meshgrid(*axes, indexing="ij")]
        measured = np.array([mixed[key] for key in zip(*(m.tolist() for m in mesh), strict=True)])
        factor = measured / (prefill(mesh[0], mesh[1]) + decode(mesh[2], mesh[3]))
        shape = tuple(len(axis) for axis in axes)
        logs = [np.log1p(axis) for axis in axes]
        grids.append(_MixedFactor((logs[0], logs[1], logs[2], logs[3]), factor.reshape(shape)))
    if not grids:
        raise SpecError(
            "attention table", ["mixed batches (prompt chunk and decodes both above 0) form no grid"]
        )
    return tuple(grids)


def _experts(rows: list[list[str]]) -> tuple[tuple[float, _Curve], ...]:
    points: dict[float, dict[float, float]] = defaultdict(dict)
    for tokens, activated, time_us in rows:
        points[float(activated)][float(tokens)] = float(time_us) * 1e-6
    return tuple((activated, _curve(points[activated])) for activated in sorted(points))
