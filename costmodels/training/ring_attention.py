"""Fused attention of training, whole or passed around a ring of context-parallel ranks."""

import numpy as np
import numpy.typing as npt

from costmodels.graph import Attention
from costmodels.kernels.times import KernelModel

__all__ = ["ring_attention_s"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_FORWARD_BYTES, _BACKWARD_BYTES = 10.0, 8.0
"""Traffic per element of a ring step's output: read it, read and write the fp32 sum (2 + 4 + 4); backward
adds gradients of queries (2 + 2 + 2) and, a few heads wide, of keys and values (counted; assumed)."""


def ring_attention_s(
    op: Attention,
    kernels: KernelModel,
    *,
    cp: Ints,
    batch: Floats,
    seq_len: Floats,
    heads: Floats,
    kv_heads: Floats,
    backward: bool,
) -> Floats:
    """Return seconds of one layer's fused attention on one rank. shape (rows,)

    Under context parallelism keys and values pass around a ring of `cp` ranks. With chunks in balanced order
    a causal step works on the rank's own tokens, and each of the others on half of another rank's, in a
    kernel of its own; then it corrects what was accumulated by the new maxima (Liu et al., ring attention,
    arXiv 2310.01889; Brandon et al., striped order, arXiv 2311.09431). Attention that is not causal, or sees
    a window or chosen keys only, is divided evenly.

    Parameters
    ----------
    batch : sequences of the micro-batch. shape (rows,)
    seq_len : tokens of a whole sequence. shape (rows,)
    heads, kv_heads : per rank. shape (rows,)
    """
    kernel = kernels.attention_backward_s if backward else kernels.attention_s
    masked = op.causal and op.sparse_keys is None

    def seconds(q_len: Floats, kv_len: Floats, *, causal: bool) -> Floats:
        return kernel(
            batch=batch,
            q_len=q_len,
            kv_len=kv_len,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=op.head_dim,
            value_dim=op.value_dim,
            causal=causal,
            window=op.window,
        )

    if op.window is not None or not masked or np.all(cp == 1):
        keys = seq_len if op.sparse_keys is None else np.minimum(seq_len, float(op.sparse_keys))
        return seconds(seq_len, keys, causal=masked) / cp
    own = seq_len / cp
    elements = batch * own * heads * op.value_dim
    corrected_s = kernels.memory_s(elements * (_BACKWARD_BYTES if backward else _FORWARD_BYTES))
    others_s = seconds(own, np.maximum(own / 2.0, 1.0), causal=False) + corrected_s
    return seconds(own, own, causal=True) + (cp - 1) * others_s
