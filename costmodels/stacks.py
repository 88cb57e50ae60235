"""Software stacks: what a framework and its year add to, or take from, bare kernel times.

The same layer on the same device differs by 20 to 40 % between an unfused attention of 2021 and a current
one, and by a factor of three where the host cannot launch small kernels fast enough. A stack says which
implementation runs (assumed from the framework's public source) and carries a few coefficients fitted
from measured runs; both kinds are kept apart in the coefficient file.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

from costmodels.in_force import in_force
from costmodels.kernels.data import SAME_DIE
from costmodels.reference_stack import DOES, PRIORS, REFERENCE_STACK
from hardware.device import Device
from hardware.errors import UnknownNameError

__all__ = [
    "ANCHORED",
    "FITTED",
    "Stack",
    "anchor_of",
    "between_runs",
    "device_factor",
    "device_keys",
    "device_stack",
    "find_stack",
    "fitted_ranges",
    "has_fused_attention",
    "stack_names",
    "stack_release",
]

FITTED = (
    "gemm",
    "attention",
    "vector",
    "comm",
    "dp_comm",
    "misaligned",
    "experts",
    "ep_comm",
    "host_s_per_op",
    "host_s_per_microbatch",
    "sync_s_per_collective",
    "tp_exposed_frac",
    "pp_exposed_frac",
    "dp_exposed_frac",
    "step_s",
)
"""Coefficients that are fitted from measured runs; every other field states what the framework does."""

ANCHORED = ("megatron-deepspeed-2023",)
"""Stacks whose own matmul factor rests on a published figure of the device they run on."""
_GRAPHED_HOST_FRAC = 0.25
"""Launch time that is left where most of a layer is replayed as a graph (assumed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One framework at one time, as the step model needs it."""

    name: str
    summary: str = ""
    release: str = ""
    """Container that it stands for, such as ``26.04``; blank where its releases are not told apart."""
    flash: bool = True
    """Attention keeps no score matrix; recomputing it selectively costs nothing more."""
    attention_kernel: str = "native"
    """Fused attention: written for the device (``native``: cuDNN, FlashAttention-3) or portable (``flash1``,
    ``flash2``: FlashAttention's first or second version, or Triton of their time)."""
    fused_sinks: bool = True
    """A fused attention kernel handles learned sinks and biases."""
    fused_norm: bool = True
    separate_casts: bool = False
    """Tensors are scaled to 8 bits by passes of their own, beyond what a measured 8-bit matmul includes
    (torchao's dynamic scaling; Transformer Engine fuses it)."""
    overlap_gradients: bool = True
    """Gradient reduction runs under backward, by bucket."""
    main_grad_bytes: float = 4.0
    """Bytes per parameter of the gradient that is accumulated."""
    loss_bytes_per_logit: float = 52.0
    """Memory traffic of the cross entropy, forward and backward: 52 is Megatron's passes over fp32 logits, 36
    where element-wise passes are fused, under torch's own loss, or where metrics pass over the logits again
    (Composer's), 10 one kernel that works in place (Transformer Engine's, FlashAttention's); counted."""
    logit_bytes: float = 6.0
    """Per logit at the peak of an unfused loss: 6 is 16 bits and fp32 worked on in place (Megatron), 10 is
    one
    fp32 copy more."""
    score_bytes: float = 2.0
    """Per attention score that an unfused softmax keeps, without dropout: 2 with a fused 16-bit kernel, 6
    where
    the softmax runs in fp32 and is cast back."""
    fused_activation: bool = True
    """A gated activation keeps its input only, not the activated gate."""
    selective_kept_frac: float = 1.0
    """Of a layer's activations (scores aside), what selective recomputation keeps: torch's checkpointing by
    operator keeps about half, Megatron's core attention only drops the scores."""
    selective_again_frac: float = 0.0
    """Of a layer's forward (attention scores aside), what selective recomputation runs again: torch's
    checkpointing by operator saves every second matmul, Megatron's drops the scores only."""
    widened_gradients: bool = False
    """DeepSpeed's optimizers: under fp16 gradients are 16 bits and widened in the shard, under bf16 there are
    16-bit gradients beside the fp32 ones."""
    spares_ends: bool = False
    """Where layers do not divide, the stages of head and embedding hold one less, interleaved or not."""
    graphed: str = ""
    """Pattern of the devices on which published recipes replay CUDA graphs, so the host hardly launches."""
    synchronous: bool = False
    """The host runs kernels itself, one after the other: what it needs to start one adds to the kernel."""
    ranks_per_processor: float = 1.0
    """Ranks that take turns on one processor: while some wait, the others run faster."""
    gemm: float = 1.0
    """Matmul time over the isolated kernel's."""
    attention: float = 1.0
    vector: float = 1.0
    """Element-wise and norm time over one fused pass at full bandwidth."""
    accumulation_frac: float = 0.0
    """Time to add the gradients of one micro-batch to their sum, over that of an unsharded optimizer step; 0
    where the matmul that makes a gradient adds it by itself."""
    end_collectives: float = 0.0
    """Collectives of tensor parallelism that embedding, head and loss add to each micro-batch, in those of a
    layer."""
    optimizer: float | None = None
    """Optimizer time over one pass at the bandwidth that was measured; None: as other element-wise work."""
    comm: float = 1.0
    """Time of tensor-, context- and expert-parallel collectives over the isolated collective's."""
    dp_comm: float = 1.0
    """Time of data-parallel collectives over the isolated collective's."""
    misaligned: float = 0.02
    """Extra time, as a fraction, of matmuls whose cut dimensions are no multiples of 64 elements."""
    experts: float = 1.0
    """Time of grouped expert matmuls over the isolated ones'."""
    ep_comm: float = 1.0
    """Time of expert dispatch and combine over the isolated all-to-all's."""
    host_s_per_op: float = 8e-6
    """Host time to launch one forward operator; backward takes as long again."""
    host_s_per_microbatch: float = 5e-4
    sync_s_per_collective: float = 0.0
    """Wait for the slowest rank at each tensor-parallel collective."""
    tp_exposed_frac: float = 1.0
    """Tensor-parallel communication that tile overlap leaves visible (1 without overlap)."""
    pp_exposed_frac: float = 0.5
    dp_exposed_frac: float = 0.1
    """Gradient reduction that stays visible although it is overlapped."""
    step_s: float = 2e-3
    """Fixed time per step: loss scaling, clipping, logging, data."""
    sigma: float = 0.15
    """Standard deviation of ln(measured / predicted) on held-out runs, before the learned correction."""
    sigma_experts: float = 0.3
    """The same for models with routed experts, whose kernels change most from version to version."""
    sources: tuple[str, ...] | None = field(default=None, compare=False)
    """Sources of the runs behind both, empty where they are too few; None where there is but one machine, the
    one at hand."""
    evidence: str = field(default="", compare=False)

    adjust: tuple[tuple[str, float], ...] = ()
    """Further factors on matmul time by ``device/format``, fitted with shrinkage towards one."""

    def on(self, device: str, number_format: str) -> "Stack":
        """Return the stack as it runs on a device in a number format: its matmul factor, its launches."""
        factor = device_factor(dict(self.adjust), f"{device}/{number_format}")
        host = _GRAPHED_HOST_FRAC if self.graphed and re.match(self.graphed, device) else 1.0
        return replace(
            self,
            gemm=self.gemm * factor,
            experts=self.experts,
            host_s_per_op=self.host_s_per_op * host,
        )

    def with_fitted(self, values: dict[str, float]) -> "Stack":
        """Return the stack with some fitted coefficients replaced."""
        unknown = sorted(set(values) - set(FITTED))
        if unknown:
            raise UnknownNameError("stack coefficient", unknown[0], FITTED)
        return replace(self, **values)  # type: ignore[arg-type]


def device_factor(factors: Mapping[str, float], key: str) -> float:
    """Return the factor of a ``device/format``: its own, or that of a device with the same dies, or one."""
    own, sibling = device_keys(key)
    return factors.get(own, factors.get(sibling, 1.0))


def device_keys(key: str) -> tuple[str, str]:
    """Return a ``device/format`` and that of the device with the same dies, which may be itself.

    Examples
    --------
    >>> device_keys("h100-pcie/bf16")
    ('h100-pcie/bf16', 'h100/bf16')
    """
    device, _, number_format = key.partition("/")
    return key, f"{SAME_DIE.get(device, device)}/{number_format}"


@cache
def _file() -> dict[str, Any]:
    path = files("costmodels") / "data" / "coefficients" / "training" / "stacks.json"
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = _file()["stacks"]
    return table


def between_runs() -> Mapping[str, Any]:
    """Return what ships on the spread between sources, with the devices and formats that have runs."""
    found: Mapping[str, Any] = _file()["between"]
    return found


def anchor_of(device: str, number_format: str) -> str | None:
    """Return the published figure that the matmul factor of a device without fitted runs rests on, if any."""
    entry = _file()["anchored_adjust"].get(f"{device}/{number_format}")
    return None if entry is None else str(entry["source"])


def fitted_ranges(name: str) -> Mapping[str, tuple[int, int]]:
    """Return least and most of what the runs behind a stack ran; empty without runs.

    The keys are devices, seq_len, hidden and the degrees tp, pp, cp and ep.
    """
    ranges: dict[str, list[int]] = _table().get(name, {}).get("ranges", {})
    return {column: (low, high) for column, (low, high) in ranges.items()}


def stack_release(name: str) -> str:
    """Return the release that a shipped stack stands for; blank where there is none."""
    release: str = _table().get(name, {}).get("does", {}).get("release", "")
    return release


def stack_names() -> tuple[str, ...]:
    """Return the names of all training stacks that were fitted to published runs."""
    return tuple(sorted(_table()))


def find_stack(name: str, *, fitted: bool = True) -> Stack:
    """Return the stack of that name, with what was fitted or (for fitting anew) as it is assumed.

    Raises
    ------
    UnknownNameError
        if there is none; suggests near names.
    """
    measured = in_force(Stack, name) if fitted else None
    return _shipped_stack(name, fitted) if measured is None else measured


def has_fused_attention(device: Device) -> bool:
    """Return whether kernels of fused attention are written for a device.

    They start with brain floats: FlashAttention 2 and cuDNN's with Ampere, CANN's with Atlas A2.
    """
    return device.bf16_flops_per_s is not None


def device_stack(name: str, device: Device) -> Stack:
    """Return the stack of that name as `device` can run it.

    Without fused attention scores are kept in memory, and take plain kernels' time. The reference step calls
    what torch has for the device, on processors too.

    Raises
    ------
    UnknownNameError
        if there is none; suggests near names.
    """
    stack = find_stack(name)
    if name == REFERENCE_STACK or not stack.flash or has_fused_attention(device):
        return stack
    return replace(stack, flash=False, attention=max(stack.attention, 1.0))


@cache
def _shipped_stack(name: str, fitted: bool) -> Stack:
    if name == REFERENCE_STACK:
        believed: dict[str, Any] = {**DOES, **{label: prior.value for label, prior in PRIORS.items()}}
        return Stack(name=name, **believed)
    entry = _table().get(name)
    if entry is None:
        raise UnknownNameError("software stack", name, stack_names())
    if not fitted:
        return Stack(name=name, **entry["does"], **entry["assumed"])
    anchored = {key: item["factor"] for key, item in _file()["anchored_adjust"].items()}
    factors = entry.get("adjust", {}) if name in ANCHORED else anchored | entry.get("adjust", {})
    spread = {label: entry[label] for label in ("sigma", "sigma_experts") if label in entry}
    return Stack(
        name=name,
        sources=tuple(entry["sources"]),
        **spread,
        **entry["does"],
        **{**entry["assumed"], **entry["fitted"]},
        adjust=tuple(sorted(factors.items())),
        evidence=entry["evidence"],
    )
