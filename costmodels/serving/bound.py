"""Throughput that no serving engine passes: every token needs two FLOPs per active weight.

At large batches serving is bound by dense matmuls, so tokens per second and device are at most the best rate
of a large matmul over twice the active parameters (K. Zhu et al., NanoFlow, OSDI 2025).
"""

import numpy as np

from costmodels.graph import ModelGraph
from costmodels.kernels.times import KernelModel

__all__ = ["best_matmul_flops_per_s", "throughput_bound_tokens_per_s"]

_SIDES = (4096, 8192, 16384)


def best_matmul_flops_per_s(kernels: KernelModel, dtype: str = "bf16") -> float:
    """Return the best rate of a large square-ish matmul on the device."""
    m, n, k = (a.ravel().astype(float) for a in np.meshgrid(_SIDES, _SIDES, _SIDES, indexing="ij"))
    rate = 2.0 * m * n * k / kernels.matmul_s(m, n, k, dtype=dtype)
    return float(np.max(rate))


def throughput_bound_tokens_per_s(model: ModelGraph, kernels: KernelModel, dtype: str = "bf16") -> float:
    """Return prompt and output tokens per second and device that no schedule passes.

    As its authors count, all active parameters take part, vocabulary tables among them.
    """
    return best_matmul_flops_per_s(kernels, dtype) / (2.0 * model.num_active_params)
