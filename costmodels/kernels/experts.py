r"""Physics of the fused feed-forward of routed experts on one device.

``tokens`` tokens choose ``top_k`` of ``num_experts`` experts; this device holds ``num_experts / ep`` of
them, each cut ``etp`` ways. Tokens of one expert are padded to a tile; only experts that got a token are
read from memory: with E experts and r routed rows in total, :math:`E (1 - (1 - 1/E)^r)` of them when the
routing is balanced, fewer when it is skewed (a power law ``share_i ~ i^-skew`` over experts).
"""

import numpy as np

from costmodels.kernels.machine import Coefficients, Family, Floats, Format, Machine, Shape

__all__ = ["EXPERTS", "active_experts"]

_QUANTILES = (np.arange(32) + 0.5) / 32
_ROW_TILES = (16, 32, 64, 128)


def _shares(num_experts: Floats, skew: Floats) -> Floats:
    """Return, at fixed quantiles of the experts, the load of one expert over the mean. shape (rows,
    quantiles)
    """
    rank = _QUANTILES[None, :] * num_experts[:, None] + 0.5
    weight = rank ** -skew[:, None]
    mean: Floats = weight.mean(axis=1, keepdims=True)
    share: Floats = weight / mean
    return share


def active_experts(routed: Floats, num_experts: Floats, skew: Floats) -> Floats:
    """Return how many of all experts get at least one of `routed` rows."""
    load = _shares(num_experts, skew) * (routed / num_experts)[:, None]
    reached: Floats = (1.0 - np.exp(-load)).mean(axis=1)
    return num_experts * reached


def _parts(shape: Shape) -> tuple[Floats, Floats, Floats]:
    """Return local rows, local active experts and the width of one expert's slice."""
    routed = shape["tokens"] * shape["top_k"]
    active = active_experts(routed, shape["num_experts"], shape["skew"]) / shape["ep"]
    return (
        routed / shape["ep"],
        np.maximum(active, np.minimum(1.0, routed)),
        shape["ffn_hidden"] / shape["etp"],
    )


def _experts_s(shape: Shape, machine: Machine, fmt: Format, c: Coefficients) -> Floats:
    rows, active, width = _parts(shape)
    hidden = shape["hidden"]
    matrices = 3.0
    moved = active * matrices * hidden * width * fmt.weight_bytes + rows * (4.0 * hidden + 6.0 * width)
    memory = moved / (c["memory_frac"] * machine.bytes_per_s)
    best = np.full(rows.shape, np.inf)
    load = (
        _shares(shape["num_experts"], shape["skew"])
        * (rows / np.maximum(shape["num_experts"] / shape["ep"], 1.0))[:, None]
    )
    local = shape["num_experts"] / shape["ep"]
    for tile in _ROW_TILES:
        padded = (np.ceil(load / tile) * tile).mean(axis=1) * local
        padded = np.minimum(padded, np.maximum(rows, 1.0) * tile)
        loss = 1.0 + c["tile_loss"] * (128.0 / tile - 1.0)
        best = np.minimum(best, 2.0 * matrices * padded * hidden * width * loss)
    compute = best / (machine.peak_flops_per_s * c["compute_frac"])
    overhead = rows * c["row_s"]
    p = c["sharpness"]
    return c["launch_s"] + overhead + (compute**p + memory**p) ** (1.0 / p)


def _features(shape: Shape, machine: Machine, fmt: Format) -> Floats:
    rows, active, width = _parts(shape)
    hidden = shape["hidden"]
    local = shape["num_experts"] / shape["ep"]
    compute = rows * hidden * width / machine.peak_flops_per_s
    memory = active * hidden * width / machine.bytes_per_s
    logs = (
        shape["tokens"], hidden, shape["ffn_hidden"], width, shape["top_k"], shape["num_experts"],
        shape["ep"], shape["etp"], rows, local, active, rows / local, compute, memory,
        compute / memory, hidden * width,
    )  # fmt: skip
    return np.stack([*(np.log(x) for x in logs), shape["skew"]], axis=1)


EXPERTS = Family(
    name="experts",
    columns=("tokens", "hidden", "ffn_hidden", "top_k", "num_experts", "etp", "ep", "skew"),
    start={
        "compute_frac": 0.5,
        "tile_loss": 0.05,
        "memory_frac": 0.6,
        "row_s": 1e-9,
        "sharpness": 3.0,
        "launch_s": 2e-5,
    },
    physics=_experts_s,
    features=_features,
)
