r"""Physics of one dense matmul ``y[m, n] = x[m, k] @ w[n, k].T``: tiles, waves, traffic and a launch floor.

A kernel cuts the output into tiles of ``bm x bn``; every compute unit works on one tile at a time, so the
time is a whole number of *waves* of tiles, and rows that only pad a tile cost as much as rows that are
wanted. Where there are fewer tiles than units, the inner dimension is split. The best of a few tile shapes
is taken, as libraries do:

.. math::
    t_{compute} = \min_{tile, s} \lceil T s / U \rceil
    \left( \frac{2 b_m b_n k / s}{e\, e_{tile} P / U} + t_{tile} \right),
    \quad T = \lceil m / b_m \rceil \lceil n / b_n \rceil

    t = t_{launch} + (t_{compute}^p + t_{memory}^p)^{1/p}, \quad
    t_{memory} = \frac{bytes - cached}{e_m B} + \frac{cached}{g B}

with P the rated peak, U the number of units, B the rated bandwidth. The part of the operands that stays in
the last-level cache between repeats of a benchmark moves at ``g B``.
"""

import numpy as np

from costmodels.kernels.machine import Coefficients, Family, Floats, Format, Machine, Shape

__all__ = ["MATMUL", "alignment_frac", "matmul_bytes", "matmul_physics_s", "weight_bytes"]

TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (16, 64))
_SPLIT_DEPTH = 256
"""Smallest inner dimension that a split is given (assumed; libraries keep at least a few pipeline stages)."""
_FEATURE_TILES = (
    (64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128), (256, 256), (16, 64),
    (64, 256), (128, 192), (192, 128), (32, 64), (16, 128), (256, 192),
)  # fmt: skip

_ALIGNMENT = ((64, 1.0), (32, 0.95), (16, 0.9), (8, 0.8), (1, 0.5))
"""Efficiency by the largest divisor of a leading dimension, in elements. 64 elements are a 128-byte line.

Assumed grades; anchored on training runs of one model family, which lose 27 % between hidden sizes 13824
(1728 per rank, a multiple of 64) and 14400 (1800 per rank, a multiple of 8). Below 8, vector loads are
impossible. """


def alignment_frac(*dims: Floats) -> Floats:
    """Return the efficiency left by leading dimensions that no cache line divides; 1 when all are multiples
    of 64.
    """
    worst = np.ones(np.broadcast_shapes(*(d.shape for d in dims)))
    for dim in dims:
        frac = np.full(dim.shape, _ALIGNMENT[-1][1])
        for divisor, value in reversed(_ALIGNMENT[:-1]):
            frac = np.where(np.mod(dim, divisor) == 0, value, frac)
        frac = np.where(dim <= _ALIGNMENT[1][0], np.maximum(frac, _ALIGNMENT[1][1]), frac)
        worst = np.minimum(worst, frac)
    return worst


def weight_bytes(shape: Shape, fmt: Format) -> Floats:
    """Return the bytes of the weight operand."""
    return fmt.weight_bytes * shape["n"] * shape["k"]


def matmul_bytes(shape: Shape, fmt: Format) -> Floats:
    """Return the bytes that operands and result occupy, and that quantising the input moves."""
    m, n, k = shape["m"], shape["n"], shape["k"]
    cast = (2.0 + fmt.input_bytes) * m * k if fmt.quantises else 0.0
    return fmt.input_bytes * m * k + weight_bytes(shape, fmt) + fmt.output_bytes * m * n + cast


def _compute_s(shape: Shape, machine: Machine, c: Coefficients) -> Floats:
    m, n, k = shape["m"], shape["n"], shape["k"]
    unit_flops_per_s = machine.peak_flops_per_s * c["compute_frac"] / machine.num_sms
    best = np.full(m.shape, np.inf)
    for bm, bn in TILES:
        tiles = shape.get("groups", 1.0) * np.ceil(m / bm) * np.ceil(n / bn)
        loss = 1.0 + c["tile_loss"] * (64.0 / bm + 64.0 / bn - 0.75)
        loop = 2.0 * bm * bn * k * loss / unit_flops_per_s
        whole = np.ceil(tiles / machine.num_sms) * (loop + c["tile_s"])
        split = np.clip(np.floor(machine.num_sms / tiles), 1.0, np.maximum(np.floor(k / _SPLIT_DEPTH), 1.0))
        shared = loop / split + c["tile_s"] + np.where(split > 1, c["split_s"], 0.0)
        best = np.minimum(best, np.where(split > 1, np.minimum(whole, shared), whole))
    return best / alignment_frac(n, k)


def matmul_physics_s(shape: Shape, machine: Machine, fmt: Format, c: Coefficients) -> Floats:
    """Return the seconds of every row by physics alone; see the module's equation.

    An optional column `groups` counts equal matmuls that run as one kernel.
    """
    moved = shape.get("groups", 1.0) * matmul_bytes(shape, fmt)
    cached = np.minimum(moved, c["cache_share"] * machine.l2_bytes)
    bandwidth = machine.bytes_per_s
    memory = (moved - cached) / (c["memory_frac"] * bandwidth) + cached / (c["cache_gain"] * bandwidth)
    compute = _compute_s(shape, machine, c)
    p = c["sharpness"]
    busy = (compute**p + memory**p) ** (1.0 / p)
    return c["launch_s"] + (busy**4 + c["host_s"] ** 4) ** 0.25


def _twos(rows: Floats) -> Floats:
    """Return how often two divides the row count, at most seven times: kernels pad rows to whole vectors."""
    out = np.zeros(rows.shape)
    for power in range(1, 8):
        out = np.where(np.mod(rows, 2**power) == 0, float(power), out)
    return out


def _features(shape: Shape, machine: Machine, fmt: Format) -> Floats:
    m, n, k = shape["m"], shape["n"], shape["k"]
    compute = 2.0 * m * n * k / machine.peak_flops_per_s
    memory = matmul_bytes(shape, fmt) / machine.bytes_per_s
    columns = [np.log(c) for c in (m, n, k, compute, memory, compute / memory, m * n, m * k, n * k)]
    columns.append(_twos(m))
    for bm, bn in _FEATURE_TILES:
        tiles = np.ceil(m / bm) * np.ceil(n / bn)
        waves = np.ceil(tiles / machine.num_sms)
        columns += [tiles / machine.num_sms / waves, m * n / (waves * machine.num_sms * bm * bn)]
        columns += [np.log(waves)]
    return np.stack(columns, axis=1)


MATMUL = Family(
    name="matmul",
    columns=("m", "n", "k"),
    start={
        "compute_frac": 0.8,
        "tile_loss": 0.1,
        "tile_s": 1e-6,
        "split_s": 1e-6,
        "memory_frac": 0.8,
        "cache_share": 0.5,
        "cache_gain": 1.5,
        "sharpness": 3.0,
        "launch_s": 2e-6,
        "host_s": 1e-6,
    },
    physics=matmul_physics_s,
    features=_features,
)
