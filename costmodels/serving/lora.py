r"""Low-rank adapters beside the dense layers: memory of those kept resident, time of those a batch uses.

A matrix of :math:`i` inputs and :math:`o` outputs gets one into rank :math:`r` and one out of it. Requests of
different adapters share an iteration (batched gather matmuls: L. Chen et al., Punica, MLSys 2024; Y. Sheng
et al., S-LoRA, MLSys 2024), so an iteration reads every adapter that one of its requests uses once: of
:math:`n` adapters, asked for alike, :math:`s` requests use :math:`n (1 - (1 - 1 / n)^s)` on average. Each
layer adds two kernels. Routed experts have no adapters. No measured runs are behind these times.
"""

import numpy as np
import numpy.typing as npt

from costmodels.graph import Matmul, ModelGraph, Split
from costmodels.serving.config import ServingTable
from hardware.device import Device

__all__ = ["lora_bytes", "lora_s"]

Floats = npt.NDArray[np.float64]

_FUSED = {"qkv": 3, "gate_up": 2, "shared_gate_up": 2}
"""Matrices of the checkpoint that run as one layer; each has an adapter of its own."""
_BYTES = 2.0
"""Adapters are kept in 16 bits."""
_KERNEL_S = 1.6e-6
"""Start and end of one kernel inside a captured graph (assumed, as for other memory-bound kernels)."""
_BANDWIDTH_FRAC = 0.5
_PEAK_FRAC = 0.3
"""Of the rated bandwidth and 16-bit peak, reached by gathered matmuls this thin (assumed)."""


def _layers(model: ModelGraph) -> list[tuple[Matmul, int]]:
    return [
        (op, model.layers.count(i))
        for i, block in enumerate(model.blocks)
        for op in block.operators
        if isinstance(op, Matmul) and op.out_features > 1
    ]


def _features(op: Matmul, table: ServingTable) -> Floats:
    """Return inputs plus outputs of one layer's adapter on one device; the side that is not cut is whole."""
    inputs = (
        op.in_features
        * _FUSED.get(op.name, 1)
        / (table.tp if op.split is Split.ROW else np.ones_like(table.tp))
    )
    outputs = op.out_features / (table.tp if op.split is Split.COLUMN else np.ones_like(table.tp))
    return np.asarray(inputs + outputs, dtype=float)


def lora_bytes(model: ModelGraph, table: ServingTable) -> Floats:
    """Return bytes per device of all resident adapters. shape (rows,)"""
    features = sum((count * _features(op, table) for op, count in _layers(model)), np.zeros(len(table)))
    return _BYTES * table.num_adapters * table.lora_rank * features / table.pp


def lora_s(model: ModelGraph, table: ServingTable, *, tokens: Floats, seqs: Floats, device: Device) -> Floats:
    """Return seconds that adapters add to one iteration. shape (rows,)

    Parameters
    ----------
    table : configurations; no time is added where `num_adapters` or `lora_rank` is zero. rows
    tokens : of the fullest attention group in the iteration. rows
    seqs : requests that these tokens belong to, each with an adapter of its own choice. rows
    """
    out = np.zeros(len(table))
    rows = (table.num_adapters > 0) & (table.lora_rank > 0)
    if not rows.any():
        return out
    used = table.take(rows)
    distinct = used.num_adapters * (1.0 - (1.0 - 1.0 / used.num_adapters) ** seqs[rows])
    peak = _PEAK_FRAC * device.peak_flops_per_s("bf16")
    bandwidth = _BANDWIDTH_FRAC * device.memory_bytes_per_s
    total = np.zeros(len(used))
    for op, count in _layers(model):
        features = used.lora_rank * _features(op, used)
        read_s = _BYTES * distinct * features / bandwidth
        compute_s = 2.0 * tokens[rows] * op.tokens_frac * features / peak
        total += count * (2.0 * _KERNEL_S + np.maximum(read_s, compute_s))
    out[rows] = total
    return out
