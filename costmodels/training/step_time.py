"""Time of one optimizer step from its inputs under a software stack.

A layer takes the longer of what its kernels need and what the host needs to launch them, smoothly joined.
The slowest stage works on every micro-batch; the rest of the pipeline's fill and drain is the bubble, divided
by the number of model chunks (Narayanan et al., arXiv 2104.04473, section 2.2). Gradient reduction and weight
gathering show where they outlast the backward or forward pass that hides them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.stacks import Stack
from costmodels.training.layer_costs import LOSS_BYTES_PER_LOGIT
from costmodels.training.step_inputs import StepInputs

__all__ = ["StepParts", "step_parts"]

Floats = npt.NDArray[np.float64]

_JOIN_POWER = 6.0
"""Sharpness of the joint between device-bound and host-bound layers (assumed)."""
_UNFUSED_NORM_PASSES = 8.0
"""Traffic of an RMS norm written with tensor operations in fp32 over that of one fused kernel: widen,
square, mean,
scale, narrow and weight are passes of their own (counted in bytes, about 36 against 4 per element)."""
_NO_TIME_S = 1e-30
_OVERLAPPED_SEND_FRAC = 0.3
"""Part of a stage-to-stage send that stays visible when the schedule overlaps it (assumed)."""


@dataclass(frozen=True, slots=True, eq=False)
class StepParts:
    """Parts of a step, seconds, one row per strategy; their sum is the step."""

    forward_s: Floats
    backward_s: Floats
    recompute_s: Floats
    tp_comm_s: Floats
    cp_comm_s: Floats
    ep_comm_s: Floats
    pp_comm_s: Floats
    host_s: Floats
    bubble_s: Floats
    dp_comm_s: Floats
    tied_comm_s: Floats
    optimizer_s: Floats
    fixed_s: Floats

    @property
    def total_s(self) -> Floats:
        """Sum of the parts."""
        total: Floats = np.sum([getattr(self, n) for n in self.__slots__], axis=0)
        return total


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One layer and micro-batch under a stack."""

    fwd_s: Floats
    bwd_s: Floats
    again_s: Floats
    """What is computed again in backward."""
    tp_s: Floats
    cp_s: Floats
    ep_s: Floats
    gather_s: Floats
    """Visible gathering of weights and scattering of gradients under full sharding."""
    covered_s: Floats
    """The part of backward that hides the rest of it."""
    stall_s: Floats
    """Added by host-bound phases."""

    @property
    def total_s(self) -> Floats:
        shared = self.tp_s + self.cp_s + self.ep_s + self.gather_s
        return self.fwd_s + self.bwd_s + self.again_s + shared + self.stall_s


def _join(device_s: Floats, host_s: Floats) -> Floats:
    """Return the smooth maximum of two times."""
    high = np.maximum(device_s, host_s)
    low = np.minimum(device_s, host_s)
    return high * (1.0 + (low / np.maximum(high, _NO_TIME_S)) ** _JOIN_POWER) ** (1.0 / _JOIN_POWER)


def _attention_s(inputs: StepInputs, stack: Stack) -> tuple[Floats, Floats]:
    layer = inputs.layer
    if stack.flash:
        forward, backward = layer.attn_fwd_s, layer.attn_bwd_s
        if not stack.fused_sinks:
            forward, backward = forward + layer.learned_fwd_s, backward + layer.learned_bwd_s
        ratios = {"flash1": inputs.flash1_ratio, "flash2": inputs.flash2_ratio}
        slower = stack.attention * ratios.get(stack.attention_kernel, 1.0)
        return forward * slower, backward * slower
    return layer.unfused_fwd_s * stack.attention, layer.unfused_bwd_s * stack.attention


def _tp_visible_s(inputs: StepInputs, stack: Stack, collective_s: Floats, matmul_s: Floats) -> Floats:
    """Return the visible part of a layer's tensor-parallel collectives.

    Tiles of a collective run beside those of the matmul that needs or makes them; what outlasts the matmuls
    has nothing to hide under.
    """
    whole = collective_s * stack.comm
    hidden = np.maximum(whole * stack.tp_exposed_frac, whole - matmul_s)
    return np.where(inputs.overlap_tp > 0, hidden, whole)


def _layer_parts(inputs: StepInputs, stack: Stack) -> _Layer:
    layer = inputs.layer
    attn_fwd, attn_bwd = _attention_s(inputs, stack)
    matmul = stack.gemm
    ragged = layer.misaligned_s * stack.misaligned
    fwd = (layer.gemm_fwd_s + ragged) * matmul + attn_fwd
    fwd = fwd + layer.expert_fwd_s * stack.experts + layer.routing_s * stack.vector
    norm = 1.0 if stack.fused_norm else _UNFUSED_NORM_PASSES
    cast = layer.cast_s * stack.separate_casts
    fwd = fwd + (layer.vector_fwd_s + norm * layer.norm_fwd_s + cast) * stack.vector
    bwd = (layer.gemm_bwd_s + 2.0 * ragged) * matmul + attn_bwd
    bwd = bwd + layer.expert_bwd_s * stack.experts + layer.routing_s * stack.vector
    bwd = bwd + (layer.vector_bwd_s + norm * layer.norm_bwd_s + 2.0 * cast) * stack.vector
    sync = stack.sync_s_per_collective * layer.num_collectives
    tp_fwd = _tp_visible_s(inputs, stack, layer.tp_fwd_s, layer.gemm_fwd_s * matmul) + sync
    tp_bwd = _tp_visible_s(inputs, stack, layer.tp_bwd_s, layer.gemm_bwd_s * matmul) + sync
    ep = layer.ep_s * stack.ep_comm
    # Ring exchange of keys and values runs under the attention of the block before it.
    cp_fwd = np.maximum(layer.cp_s * stack.comm - attn_fwd, 0.1 * layer.cp_s)
    cp_bwd = np.maximum(2.0 * layer.cp_s * stack.comm - attn_bwd, 0.2 * layer.cp_s)
    gather = inputs.gather_layer_s * stack.dp_comm
    # What already hides under the ring exchange's attention cannot hide the weights too.
    open_fwd = fwd + tp_fwd - np.maximum(layer.cp_s * stack.comm - cp_fwd, 0.0)
    open_bwd = bwd + tp_bwd - np.maximum(2.0 * layer.cp_s * stack.comm - cp_bwd, 0.0)
    zero_fwd = np.maximum(gather - open_fwd, stack.dp_exposed_frac * gather)
    zero_bwd = np.maximum(3.0 * gather - open_bwd, stack.dp_exposed_frac * 3.0 * gather)
    host = layer.num_ops * stack.host_s_per_op
    again_device = fwd + tp_fwd + ep
    again = inputs.recomputed_frac * again_device
    if not stack.flash:
        again = again + inputs.recompute_attention * attn_fwd
    again = again + inputs.recompute_attention * stack.selective_again_frac * (fwd - attn_fwd)
    again_host = inputs.recomputed_frac * host
    device_fwd = fwd + tp_fwd + cp_fwd + ep + zero_fwd
    device_bwd = bwd + tp_bwd + cp_bwd + ep + zero_bwd + again
    if stack.synchronous:
        stall_fwd, stall_bwd = host, host + again_host
    else:
        stall_fwd = _join(device_fwd, host) - device_fwd
        stall_bwd = _join(device_bwd, host + again_host) - device_bwd
    return _Layer(
        fwd_s=fwd,
        bwd_s=bwd,
        again_s=again,
        tp_s=tp_fwd + tp_bwd,
        cp_s=cp_fwd + cp_bwd,
        ep_s=2.0 * ep,
        gather_s=zero_fwd + zero_bwd,
        covered_s=3.0 * gather - zero_bwd,
        stall_s=stall_fwd + stall_bwd,
    )


def _end_collectives_s(inputs: StepInputs, stack: Stack) -> Floats:
    """Return what collectives of embedding, head and loss add to a micro-batch."""
    layer = inputs.layer
    each = layer.tp_fwd_s * stack.comm / np.maximum(layer.num_collectives, 1.0) + stack.sync_s_per_collective
    return np.where(layer.num_collectives > 0, stack.end_collectives * each, 0.0)


def _gradient_frac(inputs: StepInputs, stack: Stack) -> Floats:
    """Return the bytes of a reduced gradient over four: DeepSpeed reduces those of fp16 as they are."""
    as_they_are = stack.widened_gradients & (inputs.fp16 > 0)
    return np.where(as_they_are, 2.0, stack.main_grad_bytes) / 4.0


def _data_parallel_s(inputs: StepInputs, stack: Stack, window_fwd_s: Floats, window_bwd_s: Floats) -> Floats:
    """Return visible gradient reduction and weight gathering of one step.

    The windows are those of one micro-batch: a reduction runs under the backward pass that it ends.
    """
    grads = inputs.grad_comm_s * stack.dp_comm * _gradient_frac(inputs, stack)
    params = inputs.param_comm_s * stack.dp_comm
    open_s = inputs.grad_rounds * grads + params
    if not stack.overlap_gradients:
        return open_s
    left = stack.dp_exposed_frac
    hidden = inputs.grad_rounds * np.maximum(grads - window_bwd_s, left * grads)
    hidden = hidden + np.maximum(params - window_fwd_s, left * params)
    return np.where(inputs.overlap_dp > 0, hidden, open_s)


def _shared_bubble_frac(pp: Floats, num_micro: Floats, ranks_per_processor: float) -> Floats:
    r"""Return which part of the bubble stays when ranks take turns on processors.

    Kernels are timed while all ranks run, `n` to a processor. In fill and drain only some of the stages run,
    and each of them is up to `n` times as fast: with :math:`a` of :math:`p` stages at work a slot takes
    :math:`\max(1/n, a/p)`. Over the :math:`m + p - 1` slots of 1F1B, at most :math:`\min(m, p)` at work,
    that sums to :math:`m` and what is left of the bubble's :math:`p - 1`.
    """
    depth = np.maximum(pp, 2.0)
    most = np.minimum(num_micro, depth)
    ramp = np.zeros(np.broadcast_shapes(pp.shape, num_micro.shape))
    for at_work in range(1, int(np.max(most, initial=1.0))):
        slot = np.maximum(1.0 / ranks_per_processor, at_work / depth)
        ramp = ramp + np.where(at_work < most, 2.0 * slot, 0.0)
    full = (num_micro + depth + 1.0 - 2.0 * most) * np.maximum(1.0 / ranks_per_processor, most / depth)
    left: Floats = np.maximum(ramp + full - num_micro, 0.0) / (depth - 1.0)
    return left


def step_parts(inputs: StepInputs, stack: Stack) -> StepParts:
    """Return the parts of one step for every row of `inputs` under `stack`."""
    layer = _layer_parts(inputs, stack)
    ends = inputs.layer
    head_fwd = ends.head_gemm_fwd_s * stack.gemm
    head_bwd = ends.head_gemm_bwd_s * stack.gemm
    loss_s = ends.loss_s * stack.loss_bytes_per_logit / LOSS_BYTES_PER_LOGIT
    head_vector = (ends.head_vector_s + loss_s) * stack.vector
    head = head_fwd + head_bwd + head_vector
    embed = ends.embed_s * stack.vector
    single = inputs.pp == 1
    layers = inputs.layers_max
    pace = stack.host_s_per_microbatch + stack.accumulation_frac * inputs.optimizer_s
    body = layers * layer.total_s + _end_collectives_s(inputs, stack)
    # The stage with the head sets the pace, by what its head takes longer than the layer that it may lack;
    # on one stage everything runs in turn.
    spared = stack.spares_ends * np.minimum(inputs.pp * (layers - inputs.layers_mean), 1.0) * layer.total_s
    ahead = np.maximum(head - spared, 0.0) / np.maximum(head, _NO_TIME_S)
    slowest = body + pace + head * ahead + np.where(single, embed, 0.0)
    whole = inputs.pp * (inputs.layers_mean * layer.total_s + pace) + head + embed
    whole = whole + _end_collectives_s(inputs, stack)
    micro = inputs.num_micro
    sends = 2.0 * inputs.vpp * inputs.p2p_s * stack.comm
    visible = stack.pp_exposed_frac * np.where(inputs.overlap_pp > 0, _OVERLAPPED_SEND_FRAC, 1.0)
    ramp = 2.0 * (inputs.pp - 1) * inputs.p2p_s * stack.comm
    bubble = np.maximum(whole - slowest, 0.0) / inputs.vpp
    if stack.ranks_per_processor > 1.0:
        bubble = bubble * _shared_bubble_frac(inputs.pp, micro, stack.ranks_per_processor)
    window_bwd = layers * np.maximum(layer.bwd_s + layer.again_s - layer.covered_s, 0.0) + head_bwd * ahead
    dp = _data_parallel_s(inputs, stack, layers * layer.fwd_s, window_bwd)
    parts = dict(
        forward_s=micro * (layers * layer.fwd_s + head_fwd * ahead + np.where(single, embed, 0.0)),
        backward_s=micro * (layers * layer.bwd_s + (head_bwd + head_vector) * ahead),
        recompute_s=micro * layers * layer.again_s,
        tp_comm_s=micro * (layers * layer.tp_s + _end_collectives_s(inputs, stack)),
        cp_comm_s=micro * layers * layer.cp_s,
        ep_comm_s=micro * layers * layer.ep_s,
        pp_comm_s=micro * sends * visible + ramp,
        host_s=micro * (layers * layer.stall_s + pace),
        bubble_s=bubble,
        dp_comm_s=dp + micro * layers * layer.gather_s,
        tied_comm_s=inputs.tied_comm_s * stack.dp_comm * _gradient_frac(inputs, stack),
        optimizer_s=inputs.optimizer_s * (stack.vector if stack.optimizer is None else stack.optimizer),
        fixed_s=np.full(len(inputs), stack.step_s),
    )
    return StepParts(**{name: seconds * inputs.pace for name, seconds in parts.items()})
