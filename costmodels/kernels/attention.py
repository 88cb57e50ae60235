r"""Physics of attention kernels: fused (flash) forward and backward, decode over a cache, latent (MLA) and
unfused.

The score area of one sequence is what the mask leaves of ``q_len x kv_len``. Each score costs ``2 (d +
d_v)`` matrix FLOPs and one exponential; exponentials run beside, not inside, the matrix units and weigh
more the smaller the head. A block of 128 queries of one head is one piece of work; with fewer pieces than
compute units the longest decides.
"""

import numpy as np

from costmodels.kernels.machine import Coefficients, Family, Floats, Format, Machine, Shape

__all__ = ["BACKWARD_FLOPS_RATIO", "CONTEXT", "CONTEXT_MLA", "DECODE", "DECODE_MLA", "score_area"]

_QUERY_BLOCK = 128
_KV_BLOCK = 128
BACKWARD_FLOPS_RATIO = 2.5
"""Matrix FLOPs of the fused backward over forward: five products instead of two (Dao, arXiv 2307.08691,
sec. 3)."""


def score_area(q_len: Floats, kv_len: Floats, causal: Floats, window: Floats) -> Floats:
    """Return the number of scores that the mask leaves, per head and sequence.

    The last query sees all `kv_len` keys; a causal query sees itself and what precedes it, at most `window`
    keys (0: no window).

    Examples
    --------
    >>> float(score_area(*(np.array(v, dtype=float) for v in (4, 4, 1, 0))))
    10.0
    >>> float(score_area(*(np.array(v, dtype=float) for v in (4, 4, 1, 2))))
    7.0
    """
    full = q_len * kv_len - causal * q_len * (q_len - 1.0) / 2.0
    span = np.where(window > 0, np.minimum(window, kv_len), kv_len)
    first = kv_len - q_len + 1.0
    growing = np.clip(span - first + 1.0, 0.0, q_len)
    ramp = growing * (first + np.minimum(first + growing - 1.0, span)) / 2.0
    windowed = ramp + (q_len - growing) * span
    return np.where(window > 0, np.where(causal > 0, windowed, q_len * span), full)


def _context_s(shape: Shape, machine: Machine, fmt: Format, c: Coefficients) -> Floats:
    b, h, kvh = shape["batch"], shape["heads"], shape["kv_heads"]
    d, dv = shape["head_dim"], shape["value_dim"]
    q, kv = shape["q_len"], shape["kv_len"]
    area = score_area(q, kv, shape["causal"], shape["window"])
    blocks = np.ceil(q / _QUERY_BLOCK)
    edge = blocks * _QUERY_BLOCK / q
    padded = (
        area * np.minimum(edge, 1.0 + _KV_BLOCK * _QUERY_BLOCK / np.maximum(area, 1.0)) + q * _KV_BLOCK / 2
    )
    per_score = 2.0 * (d + dv) / c["compute_frac"] + c["softmax_flops"]
    unit = machine.peak_flops_per_s / machine.num_sms
    total = b * h * padded * per_score / machine.peak_flops_per_s
    longest = (
        _QUERY_BLOCK
        * np.minimum(kv, np.where(shape["window"] > 0, shape["window"] + _KV_BLOCK, kv))
        * per_score
        / unit
    )
    compute = total + c["tail"] * longest + np.ceil(b * h * blocks / machine.num_sms) * c["tile_s"]
    traffic = b * q * h * (d + dv) * 2.0 + b * kv * kvh * (d + dv) * shape["kv_bytes"]
    memory = traffic / (c["memory_frac"] * machine.bytes_per_s)
    p = c["sharpness"]
    return c["launch_s"] + (compute**p + memory**p) ** (1.0 / p)


def _context_features(shape: Shape, machine: Machine, fmt: Format) -> Floats:
    b, h, kvh, q, kv = (shape[c] for c in ("batch", "heads", "kv_heads", "q_len", "kv_len"))
    d = shape["head_dim"]
    area = score_area(q, kv, shape["causal"], shape["window"])
    work = b * h * area * 4 * d / machine.peak_flops_per_s
    traffic = (b * q * h * 4 * d + b * kv * kvh * 2 * d * shape["kv_bytes"]) / machine.bytes_per_s
    pieces = b * h * np.ceil(q / _QUERY_BLOCK) / machine.num_sms
    logs = (
        b,
        h,
        kvh,
        h / kvh,
        q,
        kv,
        d,
        work,
        traffic,
        work / traffic,
        pieces,
        b * q,
        b * kv * kvh * d,
        b * h,
        b * kvh,
    )
    columns = [np.log(x) for x in logs]
    columns += [shape["kv_bytes"], np.log1p(shape["window"]), pieces / np.ceil(pieces)]
    columns += [
        shape["value_dim"],
        np.log(np.ceil(q * h / kvh / _QUERY_BLOCK)),
        np.ceil(q / _QUERY_BLOCK) / q,
    ]
    for block in (64, 128, 192, 256):
        columns += _fill(b * h * np.ceil(q / block), machine)
    for block in (64, 128):
        columns += _fill(b * kvh * np.ceil(q * h / kvh / block), machine)
    return np.stack(columns, axis=1)


def _decode_s(shape: Shape, machine: Machine, fmt: Format, c: Coefficients) -> Floats:
    """Return seconds of decode; libraries do not split a cache whose heads are all their own (``heads ==
    kv_heads``).

    Such a cache is walked by one unit per sequence and head, `serial_s` per key. A surface with `block_s` is
    of a library that walks the cache of a windowed layer so too; see `_windowed_walk`.
    """
    b, h, kvh, d = (shape[c] for c in ("batch", "heads", "kv_heads", "head_dim"))
    kv = np.where(shape["window"] > 0, np.minimum(shape["window"], shape["kv_len"]), shape["kv_len"])
    cache = b * kv * kvh * 2.0 * d * shape["kv_bytes"]
    kept = c["cache_share"] * machine.l2_bytes
    walk = np.where(h == kvh, np.ceil(b * kvh / machine.num_sms) * kv * c["serial_s"], 0.0)
    passes = np.ones(b.shape)
    if "block_s" in c:
        walk, passes = _windowed_walk(shape, machine, kv, walk, c["block_s"])
    moved = cache + 4.0 * b * h * d
    cached = np.minimum(moved, kept)
    reread = (passes - 1.0) * np.maximum(cache - kept, 0.0)
    memory = (moved - cached + reread) / (c["memory_frac"] * machine.bytes_per_s)
    memory = memory + cached / (c["cache_gain"] * machine.bytes_per_s)
    padded = kvh * np.ceil(h / kvh / 64.0) * 64.0
    compute = 4.0 * b * padded * d * kv / (machine.peak_flops_per_s * c["compute_frac"])
    pieces = b * kvh * np.ceil(kv / _KV_BLOCK)
    chain = np.ceil(pieces / machine.num_sms) * c["tile_s"]
    p = c["sharpness"]
    return c["launch_s"] + (compute**p + memory**p + chain**p + walk**p) ** (1.0 / p)


def _windowed_walk(
    shape: Shape, machine: Machine, kv: Floats, walk: Floats, block_s: float
) -> tuple[Floats, Floats]:
    """Return the longest walk, and how often the cache is read, where windowed layers are not packed.

    FlashAttention-2 (Dao, arXiv 2307.08691; `mha_fwd_kvcache` of its library) packs the query heads of one
    key head into one piece of work only without a window. With one, every sequence and query head is a piece,
    and pieces that run together are of different sequences first: a key head's cache is read again for
    whatever heads do not fit beside each other. A piece takes `block_s` per block of keys, of 2^14 numbers
    or 64 keys, and half of that to begin. Caches of 8 bits run another kernel.
    """
    b, h, kvh, d = (shape[c] for c in ("batch", "heads", "kv_heads", "head_dim"))
    alone = (shape["window"] > 0) & (shape["kv_bytes"] >= 2.0)
    block = np.where(d <= 64, 256.0, np.where(d <= 128, 128.0, 64.0))
    pieces = np.ceil(b * h / machine.num_sms)
    together = np.maximum(machine.num_sms / b, 1.0)
    passes = np.where(alone, np.maximum(h / kvh / together, 1.0), 1.0)
    return np.where(alone, pieces * (np.ceil(kv / block) + 0.5) * block_s, walk), passes


def _fill(pieces: Floats, machine: Machine) -> list[Floats]:
    """Return how many rounds of the compute units some pieces of work take, and how full the rounds are."""
    rounds = pieces / machine.num_sms
    return [np.log(rounds), rounds / np.ceil(rounds)]


def _decode_features(shape: Shape, machine: Machine, fmt: Format) -> Floats:
    b, h, kvh, d = (shape[c] for c in ("batch", "heads", "kv_heads", "head_dim"))
    kv = shape["kv_len"]
    seen = np.where(shape["window"] > 0, np.minimum(shape["window"], kv), kv)
    moved = b * seen * kvh * 2.0 * d * shape["kv_bytes"]
    pieces = b * kvh / machine.num_sms
    logs = (
        b,
        h,
        kvh,
        h / kvh,
        kv,
        seen,
        d,
        moved / machine.bytes_per_s,
        pieces,
        b * h,
        b * h * seen,
        seen * kvh * d,
    )
    columns = [np.log(x) for x in logs]
    columns += [shape["kv_bytes"], np.log1p(shape["window"]), pieces / np.ceil(pieces)]
    columns += [np.ceil(h / kvh / 16.0) * 16.0 * kvh / h, (h == kvh).astype(np.float64)]
    for block in (64, 128, 256, 512):
        columns += _fill(b * kvh * np.ceil(kv / block), machine)
    columns += _fill(b * h, machine)
    return np.stack(columns, axis=1)


_LATENT_DIM = 576.0
_LATENT_VALUE_DIM = 512.0
"""Width of a cached latent with its rotary part, and without (DeepSeek-V2, arXiv 2405.04434, sec. 2.1)."""


def _decode_mla_s(shape: Shape, machine: Machine, fmt: Format, c: Coefficients) -> Floats:
    b, h, kv = shape["batch"], shape["heads"], shape["kv_len"]
    moved = b * kv * _LATENT_DIM * shape["kv_bytes"] + 2.0 * b * h * (_LATENT_DIM + _LATENT_VALUE_DIM)
    cached = np.minimum(moved, c["cache_share"] * machine.l2_bytes)
    memory = (moved - cached) / (c["memory_frac"] * machine.bytes_per_s)
    memory = memory + cached / (c["cache_gain"] * machine.bytes_per_s)
    padded = np.ceil(h / 64.0) * 64.0
    flops = 2.0 * b * padded * kv * (_LATENT_DIM + _LATENT_VALUE_DIM)
    compute = flops / (machine.peak_flops_per_s * c["compute_frac"])
    chain = np.ceil(b * np.ceil(kv / _KV_BLOCK) / machine.num_sms) * c["tile_s"]
    p = c["sharpness"]
    return c["launch_s"] + (compute**p + memory**p + chain**p) ** (1.0 / p)


def _decode_mla_features(shape: Shape, machine: Machine, fmt: Format) -> Floats:
    b, h, kv = shape["batch"], shape["heads"], shape["kv_len"]
    pieces = b / machine.num_sms
    logs = (b, h, kv, b * h, b * kv, b * h * kv, h * kv)
    columns = [np.log(x) for x in logs]
    columns += [shape["kv_bytes"], pieces / np.ceil(pieces)]
    return np.stack(columns, axis=1)


_CONTEXT_START = {
    "compute_frac": 0.6,
    "softmax_flops": 100.0,
    "tail": 0.5,
    "tile_s": 1e-6,
    "memory_frac": 0.7,
    "sharpness": 3.0,
    "launch_s": 8e-6,
}
_DECODE_MLA_START = {
    "compute_frac": 0.5,
    "memory_frac": 0.7,
    "cache_share": 0.5,
    "cache_gain": 1.5,
    "tile_s": 1e-6,
    "sharpness": 3.0,
    "launch_s": 8e-6,
}
_DECODE_START = {
    **_DECODE_MLA_START,
    "serial_s": 1e-9,
}
_CONTEXT_COLUMNS = (
    "batch",
    "q_len",
    "kv_len",
    "heads",
    "kv_heads",
    "head_dim",
    "value_dim",
    "causal",
    "window",
    "kv_bytes",
)
_DECODE_COLUMNS = ("batch", "kv_len", "heads", "kv_heads", "head_dim", "window", "kv_bytes")

CONTEXT = Family(
    name="context",
    columns=_CONTEXT_COLUMNS,
    start=_CONTEXT_START,
    physics=_context_s,
    features=_context_features,
)
CONTEXT_MLA = Family(
    name="context_mla",
    columns=_CONTEXT_COLUMNS,
    start=_CONTEXT_START,
    physics=_context_s,
    features=_context_features,
)
DECODE = Family(
    name="decode", columns=_DECODE_COLUMNS, start=_DECODE_START, physics=_decode_s, features=_decode_features
)
DECODE_MLA = Family(
    name="decode_mla",
    columns=("batch", "kv_len", "heads", "kv_bytes"),
    start=_DECODE_MLA_START,
    physics=_decode_mla_s,
    features=_decode_mla_features,
)
