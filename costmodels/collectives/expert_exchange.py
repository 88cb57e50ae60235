r"""Seconds to send tokens to their experts and back: dispatch and combine of mixture-of-experts layers.

A token goes to :math:`k` experts, but a kernel that packs copies sends it once per distinct rank, or once per
distinct node and on from there. With uniform routing over :math:`G` places the expected number of distinct
ones is :math:`G (1 - (1 - 1/G)^k)`, of which :math:`(G - 1)/G` are remote.

- NCCL: an all-to-all of every copy, as in training frameworks' plain dispatcher.
- NORMAL (DeepEP normal): one copy per node over the network, forwarded to the distinct
  ranks inside; the two phases overlap in part and their times add as a root of squares.
- LOW_LATENCY (DeepEP low latency): every copy straight to its rank, little start-up.
- RACK (TensorRT-LLM over NVLink, two-sided, its routing exchange included): one copy per distinct rank.

Constants were read off kernels measured on H100 nodes with 400 Gb/s per device (ai-dynamo/aiconfigurator
@095f58a51, DeepEP; 1, 2, 4 and 8 nodes, 1 to 131,072 tokens) and agree with DeepEP's own published table.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from costmodels.collectives.groups import Collective, Group, level_part
from costmodels.collectives.times import collective_s
from hardware.levels import Level

__all__ = ["ExchangeKernel", "distinct_places", "moe_combine_s", "moe_dispatch_s", "moe_log_sigma"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class ExchangeKernel(IntEnum):
    """Which kernels move the tokens."""

    NCCL = 0
    NORMAL = 1
    LOW_LATENCY = 2
    RACK = 3


_START_S = {
    ExchangeKernel.NORMAL: (37e-6, 48e-6),
    ExchangeKernel.LOW_LATENCY: (15e-6, 12e-6),
    ExchangeKernel.RACK: (25e-6, 13e-6),
}
"""Dispatch and combine of one token inside a node."""
_START_PER_DOUBLING_S = {
    ExchangeKernel.NORMAL: (30e-6, 35e-6),
    ExchangeKernel.LOW_LATENCY: (5e-6, 7e-6),
    ExchangeKernel.RACK: (0.0, 0.0),
}
"""More for each doubling of the nodes."""
_NETWORK_EFFICIENCY = 0.97
"""Writes of whole rows over the network against its rated speed (EP16 to EP64, low latency: 0.93 to 1.0)."""
_INSIDE_EFFICIENCY = {ExchangeKernel.NORMAL: 1.0, ExchangeKernel.LOW_LATENCY: 1.0, ExchangeKernel.RACK: 0.82}
"""Rate inside a machine against the library's own all-to-all."""
_LOG_SIGMA = {
    ExchangeKernel.NCCL: 0.25,
    ExchangeKernel.NORMAL: 0.30,
    ExchangeKernel.LOW_LATENCY: 0.12,
    ExchangeKernel.RACK: 0.25,
}
"""Rounded from `benchmarks/collective_accuracy.py`; NCCL assumed."""


def distinct_places(places: Floats, top_k: Floats, limit: Floats | float | None = None) -> Floats:
    """Return the expected number of distinct places that `top_k` uniform choices hit, at most `limit`."""
    count = np.maximum(places, 1.0)
    hit = count * (1 - (1 - 1 / count) ** top_k)
    return hit if limit is None else np.minimum(hit, limit)


def _exchange_s(
    kernel: ExchangeKernel,
    combine: int,
    group: Group,
    token_bytes: Floats,
    top_k: Floats,
    max_nodes: float | None,
) -> Floats:
    """Return the time of a packed kernel; `token_bytes` is tokens times bytes of one copy."""
    n = group.degree
    network = np.array([group.network(i) for i in range(len(group.levels))])
    nodes = np.prod(np.where(network[:, None], group.factors, 1.0), axis=0)
    packed = kernel is not ExchangeKernel.LOW_LATENCY
    copies = distinct_places(n, top_k) if packed else top_k
    zero = np.zeros(np.broadcast_shapes(n.shape, token_bytes.shape))
    inside, across = zero, zero
    for i in range(len(group.levels)):
        active = group.factors[i] > 1
        if network[i]:
            remote = top_k * (n - group.inner[i]) / n
            if packed:
                places = n / group.inner[i]
                remote = distinct_places(places, top_k, max_nodes) * (places - 1) / places
            rate = _NETWORK_EFFICIENCY * group.rate(i) / group.slowdown[i]
            across = np.maximum(across, np.where(active, token_bytes * remote / rate, 0.0))
        else:
            reach = n if packed else group.inner[i] * group.factors[i]
            rate = level_part(Collective.ALL_TO_ALL.value, group, i).busbw * _INSIDE_EFFICIENCY[kernel]
            share = np.maximum(reach - group.inner[i], 0.0) / n
            inside = np.maximum(inside, np.where(active, token_bytes * copies * share / rate, 0.0))
    start = _START_S[kernel][combine] + _START_PER_DOUBLING_S[kernel][combine] * np.log2(nodes)
    moving = np.sqrt(inside**2 + across**2) if packed else np.maximum(inside, across)
    return np.where(n > 1, start + moving, 0.0)


def _routed_s(
    kernel: ExchangeKernel,
    combine: int,
    tokens: Floats,
    row_bytes: Floats,
    top_k: Ints,
    stride: Ints,
    ep: Ints,
    levels: tuple[Level, ...],
    max_nodes: float | None,
) -> Floats:
    token_bytes = np.atleast_1d(np.asarray(tokens, np.float64) * np.asarray(row_bytes, np.float64))
    copies = np.asarray(top_k, np.float64)
    if kernel is ExchangeKernel.NCCL:
        return collective_s(Collective.ALL_TO_ALL, token_bytes * copies, stride, ep, levels)
    pair = np.broadcast_arrays(
        np.atleast_1d(np.asarray(stride, np.int64)), np.atleast_1d(np.asarray(ep, np.int64))
    )
    group = Group.of(pair[0], pair[1], levels)
    return _exchange_s(kernel, combine, group, token_bytes, copies, max_nodes)


def moe_dispatch_s(
    kernel: ExchangeKernel,
    tokens: Floats,
    row_bytes: Floats,
    top_k: Ints,
    stride: Ints,
    ep: Ints,
    levels: tuple[Level, ...],
    max_nodes: float | None = None,
) -> Floats:
    """Return the seconds to bring every rank's tokens to their experts, balanced routing assumed.

    Parameters
    ----------
    kernel : which kernels move them.
    tokens : tokens that each rank holds. shape (rows,)
    row_bytes : one token's bytes as sent, scales included (hidden size 7168: 7,392 in fp8, 14,336 in bf16).
    top_k : routed experts per token. shape (rows,)
    stride, ep : expert-parallel groups, in ranks. shape (rows,)
    levels : levels of the cluster, inner to outer.
    max_nodes : most nodes that a token may go to (group-limited routing), for NORMAL.
    """
    return _routed_s(kernel, 0, tokens, row_bytes, top_k, stride, ep, levels, max_nodes)


def moe_combine_s(
    kernel: ExchangeKernel,
    tokens: Floats,
    row_bytes: Floats,
    top_k: Ints,
    stride: Ints,
    ep: Ints,
    levels: tuple[Level, ...],
    max_nodes: float | None = None,
) -> Floats:
    """Return the seconds to bring the experts' results back; parameters as for `moe_dispatch_s`."""
    return _routed_s(kernel, 1, tokens, row_bytes, top_k, stride, ep, levels, max_nodes)


def moe_log_sigma(kernel: ExchangeKernel) -> float:
    """Return the standard deviation of ln(measured / predicted) expected of dispatch and combine."""
    return _LOG_SIGMA[kernel]
