"""Seconds of operators on one device, by shape: matmul, attention, routed experts and memory-bound kernels.

``kernel_model(device)`` answers for any device. A measured one uses its own fitted surfaces; any other uses
those of the device that it resembles, or the generic surface, and says so with a wider error. All arguments
broadcast; answers have the broadcast shape.

Every ``*_s`` method returns seconds. Methods without the suffix return a `KernelTime`, which also carries
the standard deviation of the logarithm of measured over predicted.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from costmodels.calibrated import KernelCalibration, current
from costmodels.kernels.attention import BACKWARD_FLOPS_RATIO, CONTEXT, CONTEXT_MLA, DECODE, DECODE_MLA
from costmodels.kernels.borrowed import borrowed_coefficients
from costmodels.kernels.data import Source, find_surface, source_of, steady_file
from costmodels.kernels.experts import EXPERTS
from costmodels.kernels.machine import Coefficients, Family, Floats, Machine, Shape, find_format, machine_of
from costmodels.kernels.matmul import MATMUL, weight_bytes
from costmodels.kernels.surface import KernelTime, Surface
from hardware.device import Device

__all__ = ["KernelModel", "KernelTime", "kernel_model"]

_BACKWARD_EFFICIENCY = 0.85
"""Fused backward over forward, shares of peak: 63 % against 73 % on A100 (Dao, arXiv 2307.08691, sec. 4.1),
550 against 650 TFLOP/s on H100 (Shah et al., arXiv 2407.08608, figs. 5 and 6, head size 128, causal)."""
_BACKWARD_LAUNCHES = 3.0
"""Kernels of a fused backward: row sums of output times gradient, main loop, query gradient's conversion."""
_UNFUSED_PASSES = 4.0
"""Times that an unfused softmax moves the scores, forward: scale-mask-softmax reads, writes; dropout same."""
_UNFUSED_BACKWARD_PASSES = 5.0
"""Backward: dropout reads and writes, softmax reads gradient and output and writes."""
_SAME_DIE_LOG_SIGMA = 0.10
"""Added where a device borrows from one with the same dies. Transfers between H100 and H200, and between
B200 and GB200, differ by 0.07 to 0.10 in the mean (bf16 matmul)."""
_BORROWED_FORMAT_LOG_SIGMA = 0.15
"""Added where another number format's coefficients answer (assumed)."""

ADAM_TRAFFIC_BYTES = 34.0
"""Per parameter: read gradient 4, master, two moments 12; write them 12; write weight 2; clipping pass 4."""

Number = npt.ArrayLike


def _columns(**values: Number) -> tuple[dict[str, Floats], tuple[int, ...]]:
    arrays = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in values.values()))
    return {name: a.ravel() for name, a in zip(values, arrays, strict=True)}, arrays[0].shape


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelModel:
    """Kernel times of one device."""

    device: Device
    source: Source
    as_benchmarked: bool = False
    """True reproduces the micro-benchmarks that the surfaces come from: weights may stay in the last-level
    cache between repeats, and the host may be slower than the kernel. False is the kernel inside a real
    step: every weight is read from memory and launches come from a captured graph."""
    calibration: KernelCalibration | None = None
    """Measurements of this very machine, which come before everything that ships."""

    @property
    def measured(self) -> bool:
        """Whether the device itself was measured."""
        return self.source.measured or self.calibration is not None

    def predict_shape(self, family: Family, shape: Shape, dtype: str) -> KernelTime:
        """Return the time of every row of a family's shape columns; the methods below name and broadcast
        them.
        """
        fmt = find_format(dtype)
        own = self.calibration.find(family, fmt) if self.calibration else None
        if own is not None:
            return own.predict(shape, own.machine, own.fmt, steady=not self.as_benchmarked)
        machine = machine_of(self.device, fmt)
        file = self.source.file if self.as_benchmarked else steady_file(self.source.file, family, fmt)
        surface, same_format = find_surface(file, family, fmt)
        if not same_format or not self.source.same_die:
            surface = replace(surface, trees=None, coefficients=self._coefficients(surface, machine))
        time = surface.predict(shape, machine, fmt, steady=not self.as_benchmarked)
        variance = time.log_sigma**2
        if surface.trees is None:
            variance = np.maximum(variance, surface.physics_log_sigma**2)
        if not same_format:
            variance = variance + _BORROWED_FORMAT_LOG_SIGMA**2
        if not self.source.measured or file != self.source.file:
            variance = variance + _SAME_DIE_LOG_SIGMA**2
        return replace(time, log_sigma=np.sqrt(variance))

    def _coefficients(self, surface: Surface, machine: Machine) -> Coefficients:
        """Return the coefficients, those of other dies moved to what is known of the device."""
        if self.source.same_die:
            return surface.coefficients
        return borrowed_coefficients(surface, machine, self.device, self.source.file)

    def matmul(self, m: Number, n: Number, k: Number, *, dtype: str = "bf16") -> KernelTime:
        """Return the time of ``y[m, n] = x[m, k] @ w[n, k].T``.

        Parameters
        ----------
        m : rows, usually tokens.
        n : output features.
        k : input features.
        dtype : bf16, fp16, tf32, fp32, fp8 (per tensor), fp8-block, mxfp8, nvfp4, int8, int8-weight-only or
            int4-weight-only; formats below 16 bits include quantising the activation.
        """
        shape, out = _columns(m=m, n=n, k=k)
        time = self.predict_shape(MATMUL, shape, dtype)
        seconds = time.seconds
        if not self.as_benchmarked:
            streamed = self.memory_s(weight_bytes(shape, find_format(dtype)))
            seconds = np.maximum(seconds, streamed)
        return KernelTime(seconds=seconds.reshape(out), log_sigma=time.log_sigma.reshape(out))

    def matmul_s(self, m: Number, n: Number, k: Number, *, dtype: str = "bf16") -> Floats:
        """Return the seconds of `matmul`."""
        return self.matmul(m, n, k, dtype=dtype).seconds

    def grouped_matmul(
        self, groups: Number, m: Number, n: Number, k: Number, *, dtype: str = "bf16"
    ) -> KernelTime:
        """Return the time of `groups` equal matmuls in one kernel, each ``m x n x k``; physics alone."""
        shape, out = _columns(groups=groups, m=m, n=n, k=k)
        fmt = find_format(dtype)
        own = self.calibration.find(MATMUL, fmt) if self.calibration else None
        surface = own or find_surface(self.source.file, MATMUL, fmt)[0]
        machine = own.machine if own else machine_of(self.device, fmt)
        coefficients = surface.coefficients if own else self._coefficients(surface, machine)
        surface = replace(surface, trees=None, coefficients=coefficients)
        time = surface.predict(shape, machine, fmt, steady=True)
        sigma = np.full(out, np.hypot(surface.physics_log_sigma, _SAME_DIE_LOG_SIGMA))
        return KernelTime(seconds=time.seconds.reshape(out), log_sigma=sigma)

    def grouped_matmul_s(
        self, groups: Number, m: Number, n: Number, k: Number, *, dtype: str = "bf16"
    ) -> Floats:
        """Return the seconds of `grouped_matmul`."""
        return self.grouped_matmul(groups, m, n, k, dtype=dtype).seconds

    def expert_matmul_s(
        self, groups: Number, m: Number, n: Number, k: Number, *, dtype: str = "bf16"
    ) -> Floats:
        """Return the seconds of the matmuls of `groups` experts in one kernel, each ``m x n x k``.

        What large products were measured to miss of the physics (clocks under load above all) they miss in a
        grouped kernel too: the grouped time is scaled as the one product of all their rows is.
        """
        rows = np.asarray(groups, dtype=np.float64) * np.asarray(m, dtype=np.float64)
        measured = self.matmul_s(rows, n, k, dtype=dtype) / self.grouped_matmul_s(1, rows, n, k, dtype=dtype)
        return measured * self.grouped_matmul_s(groups, m, n, k, dtype=dtype)

    def experts(
        self,
        *,
        tokens: Number,
        hidden: Number,
        ffn_hidden: Number,
        top_k: Number,
        num_experts: Number,
        etp: Number = 1,
        ep: Number = 1,
        skew: Number = 0.0,
        dtype: str = "bf16",
    ) -> KernelTime:
        """Return the time of the fused gated feed-forward of one device's share of the routed experts.

        Parameters
        ----------
        tokens : tokens of the whole expert-parallel group, before they are dispatched.
        ffn_hidden : inner width of one expert, before `etp` cuts it.
        skew : exponent of the power law of expert popularity; 0 is balanced.
        """
        shape, out = _columns(
            tokens=tokens, hidden=hidden, ffn_hidden=ffn_hidden, top_k=top_k, num_experts=num_experts,
            etp=etp, ep=ep, skew=skew,
        )  # fmt: skip
        return _reshape(self.predict_shape(EXPERTS, shape, dtype), out)

    def experts_s(
        self,
        *,
        tokens: Number,
        hidden: Number,
        ffn_hidden: Number,
        top_k: Number,
        num_experts: Number,
        etp: Number = 1,
        ep: Number = 1,
        skew: Number = 0.0,
        dtype: str = "bf16",
    ) -> Floats:
        """Return the seconds of `experts`."""
        return self.experts(
            tokens=tokens, hidden=hidden, ffn_hidden=ffn_hidden, top_k=top_k, num_experts=num_experts,
            etp=etp, ep=ep, skew=skew, dtype=dtype,
        ).seconds  # fmt: skip

    def attention(
        self,
        *,
        batch: Number,
        q_len: Number,
        kv_len: Number,
        heads: Number,
        kv_heads: Number,
        head_dim: Number,
        value_dim: Number | None = None,
        causal: bool | Number = True,
        window: Number | None = None,
        dtype: str = "bf16",
        kv_dtype: str | None = None,
    ) -> KernelTime:
        """Return the time of a fused attention over whole prompts: prefill, or training forward.

        Parameters
        ----------
        q_len : new tokens per sequence; kv_len : tokens that they attend to, themselves included.
        heads, kv_heads : of this device.
        value_dim : width of a value, `head_dim` unless given (192 and 128 are latent attention, expanded).
        window : keys that a query sees, None or 0 for all.
        kv_dtype : format of the cache, `dtype` unless given.
        """
        value = head_dim if value_dim is None else value_dim
        shape, out = _columns(
            batch=batch, q_len=q_len, kv_len=kv_len, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
            value_dim=value, causal=causal, window=0 if window is None else window,
            kv_bytes=find_format(kv_dtype or dtype).input_bytes,
        )  # fmt: skip
        latent = bool(
            np.all((shape["head_dim"] > shape["value_dim"]) & (shape["kv_heads"] == shape["heads"]))
        )
        return _reshape(self.predict_shape(CONTEXT_MLA if latent else CONTEXT, shape, "bf16"), out)

    def attention_s(
        self,
        *,
        batch: Number,
        q_len: Number,
        kv_len: Number,
        heads: Number,
        kv_heads: Number,
        head_dim: Number,
        value_dim: Number | None = None,
        causal: bool | Number = True,
        window: Number | None = None,
        dtype: str = "bf16",
        kv_dtype: str | None = None,
    ) -> Floats:
        """Return the seconds of `attention`."""
        return self.attention(
            batch=batch, q_len=q_len, kv_len=kv_len, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
            value_dim=value_dim, causal=causal, window=window, dtype=dtype, kv_dtype=kv_dtype,
        ).seconds  # fmt: skip

    def attention_backward_s(
        self,
        *,
        batch: Number,
        q_len: Number,
        kv_len: Number,
        heads: Number,
        kv_heads: Number,
        head_dim: Number,
        value_dim: Number | None = None,
        causal: bool | Number = True,
        window: Number | None = None,
        dtype: str = "bf16",
    ) -> Floats:
        """Return the seconds of the fused backward: 2.5 times the FLOPs at 0.85 of the forward's
        efficiency.
        """
        forward = self.attention_s(
            batch=batch, q_len=q_len, kv_len=kv_len, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
            value_dim=value_dim, causal=causal, window=window, dtype=dtype,
        )  # fmt: skip
        if self.calibration and self.calibration.attention_backward_ratio:
            return forward * self.calibration.attention_backward_ratio
        launch = self.launch_s()
        busy = np.maximum(forward - launch, 0.0)
        return _BACKWARD_LAUNCHES * launch + busy * BACKWARD_FLOPS_RATIO / _BACKWARD_EFFICIENCY

    def unfused_attention_s(
        self,
        *,
        batch: Number,
        q_len: Number,
        kv_len: Number,
        heads: Number,
        head_dim: Number,
        backward: bool = False,
    ) -> Floats:
        """Return the seconds of attention as batched matmuls and softmax passes over stored scores.

        No mask saves work: the score matrix is computed whole (as the 2021 Megatron stacks do).
        """
        groups = np.asarray(batch, dtype=np.float64) * np.asarray(heads, dtype=np.float64)
        products = self.grouped_matmul_s(groups, q_len, kv_len, head_dim)
        products = products + self.grouped_matmul_s(groups, q_len, head_dim, kv_len)
        scores = 2.0 * groups * np.asarray(q_len, dtype=np.float64) * np.asarray(kv_len, dtype=np.float64)
        if backward:
            return 2.0 * products + self.memory_s(_UNFUSED_BACKWARD_PASSES * scores)
        return products + self.memory_s(_UNFUSED_PASSES * scores)

    def decode_attention(
        self,
        *,
        batch: Number,
        kv_len: Number,
        heads: Number,
        kv_heads: Number,
        head_dim: Number,
        window: Number | None = None,
        dtype: str = "bf16",
    ) -> KernelTime:
        """Return the time of attention of one new token per sequence over a cache of `kv_len` tokens in
        `dtype`.
        """
        shape, out = _columns(
            batch=batch, kv_len=kv_len, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
            window=0 if window is None else window, kv_bytes=find_format(dtype).input_bytes,
        )  # fmt: skip
        return _reshape(self.predict_shape(DECODE, shape, "bf16"), out)

    def decode_attention_s(
        self,
        *,
        batch: Number,
        kv_len: Number,
        heads: Number,
        kv_heads: Number,
        head_dim: Number,
        window: Number | None = None,
        dtype: str = "bf16",
    ) -> Floats:
        """Return the seconds of `decode_attention`."""
        return self.decode_attention(
            batch=batch, kv_len=kv_len, heads=heads, kv_heads=kv_heads, head_dim=head_dim, window=window,
            dtype=dtype,
        ).seconds  # fmt: skip

    def mla_decode_attention(
        self, *, batch: Number, kv_len: Number, heads: Number, dtype: str = "bf16"
    ) -> KernelTime:
        """Return the time of latent (MLA) attention of one new token per sequence, on the cached latents."""
        shape, out = _columns(
            batch=batch, kv_len=kv_len, heads=heads, kv_bytes=find_format(dtype).input_bytes
        )
        return _reshape(self.predict_shape(DECODE_MLA, shape, "bf16"), out)

    def mla_decode_attention_s(
        self, *, batch: Number, kv_len: Number, heads: Number, dtype: str = "bf16"
    ) -> Floats:
        """Return the seconds of `mla_decode_attention`."""
        return self.mla_decode_attention(batch=batch, kv_len=kv_len, heads=heads, dtype=dtype).seconds

    def launch_s(self) -> float:
        """Return the shortest time of a kernel inside a captured graph."""
        if self.calibration and self.calibration.memory:
            return self.calibration.memory.launch_s
        surface, _ = find_surface(self.source.file, MATMUL, find_format("bf16"))
        return surface.coefficients["launch_s"]

    def memory_s(self, num_bytes: Number, *, norm: bool = False) -> Floats:
        """Return the seconds of a memory-bound kernel (element-wise, or a norm) that moves `num_bytes`."""
        moved = np.asarray(num_bytes, dtype=np.float64)
        if self.calibration and (curve := self.calibration.moving(norm=norm)):
            return curve.seconds(moved)
        surface, _ = find_surface(self.source.file, MATMUL, find_format("bf16"))
        c = surface.coefficients
        return c["launch_s"] + moved / (c["memory_frac"] * self.device.memory_bytes_per_s)

    def optimizer_s(self, num_params: Number) -> Floats:
        """Return the seconds of one Adam step over `num_params`."""
        count = np.asarray(num_params, dtype=np.float64)
        if self.calibration and self.calibration.optimizer:
            return self.calibration.optimizer.seconds(count)
        return self.memory_s(count * ADAM_TRAFFIC_BYTES)


def _reshape(time: KernelTime, shape: tuple[int, ...]) -> KernelTime:
    return KernelTime(seconds=time.seconds.reshape(shape), log_sigma=time.log_sigma.reshape(shape))


@cache
def _shipped_model(device: Device, as_benchmarked: bool) -> KernelModel:
    return KernelModel(device=device, source=source_of(device), as_benchmarked=as_benchmarked)


def kernel_model(device: Device, *, as_benchmarked: bool = False) -> KernelModel:
    """Return the kernel model of `device`, with the calibration in force where that is of this device."""
    model, calibration = _shipped_model(device, as_benchmarked), current()
    if calibration is None or calibration.device != device.name:
        return model
    return replace(model, calibration=calibration.kernels)
