"""How much slower fused attention is that was written for every device rather than for this one.

Measured attention surfaces are those of vendor kernels. Frameworks of 2022 to 2024 ran FlashAttention's first
or second version, which use no instruction younger than A100: half as fast on that device for the first, and
about as fast as the vendor's for the second, but far behind on later ones.
"""

from costmodels.kernels.attention import BACKWARD_FLOPS_RATIO
from costmodels.kernels.machine import find_format, machine_of
from costmodels.kernels.times import KernelModel

__all__ = ["PORTABLE_ATTENTION", "portable_attention_ratio"]

PORTABLE_ATTENTION = {"flash1": 0.30, "flash2": 0.60}
"""Share of A100's rated peak that each version reaches, forward and backward together, on long causal
sequences of head size 128. The paper of the second (Dao, arXiv 2307.08691) states 25 to 40 % for the first,
and for itself at best 73 % forward and 63 % backward, without a mask; that a mask leaves 60 % is assumed."""
_MASKED_FRAC = 335.0 / 370.0
"""Rate of the second version with a causal mask over that without, forward on H100 (Shah et al., arXiv
2407.08608, figure 5: head size 128, 16k tokens); backward is assumed to lose as much."""
_FLOPS_PER_S_PER_UNIT = _MASKED_FRAC * 335e12 / 132 / PORTABLE_ATTENTION["flash2"]
"""Matrix rate of one compute unit by such instructions, at most: the second version unchanged reaches 335
TFLOP/s on H100's 132 units without a mask (arXiv 2307.08691, section 4.1; figures 5 and 6 of arXiv 2407.08608
give 370 forward and 322 backward, which is the same)."""
_LENGTH = 16384
_HEADS = 32
_HEAD_DIM = 128


def portable_attention_ratio(kernels: KernelModel, implementation: str) -> float:
    """Return the time of a portable fused attention over that of the device's own kernels, at length.

    Parameters
    ----------
    implementation : a key of `PORTABLE_ATTENTION`.
    """
    machine = machine_of(kernels.device, find_format("bf16"))
    per_unit = min(machine.peak_flops_per_s / machine.num_sms, _FLOPS_PER_S_PER_UNIT)
    rate = PORTABLE_ATTENTION[implementation] * per_unit * machine.num_sms
    own_s = sum(
        seconds(batch=1, q_len=_LENGTH, kv_len=_LENGTH, heads=_HEADS, kv_heads=_HEADS, head_dim=_HEAD_DIM)
        for seconds in (kernels.attention_s, kernels.attention_backward_s)
    )
    scores = _HEADS * _LENGTH * (_LENGTH + 1.0) / 2.0
    flops = (1.0 + BACKWARD_FLOPS_RATIO) * scores * 4.0 * _HEAD_DIM
    return float(flops / rate / own_s)
