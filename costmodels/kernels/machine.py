"""What a kernel time depends on besides its shape: the rated machine and the number format."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hardware.device import Device
from hardware.errors import OutOfDomainError

__all__ = [
    "FORMATS",
    "Coefficients",
    "Family",
    "Floats",
    "Format",
    "Machine",
    "Shape",
    "find_format",
    "machine_of",
]

Floats = npt.NDArray[np.float64]
Shape = Mapping[str, Floats]
Coefficients = Mapping[str, float]

ASSUMED_NUM_SMS = 128
"""Compute units of a device whose sheet does not say; between 108 (A100) and 152 (GB200). Assumed."""
ASSUMED_L2_BYTES = 32.0 * 2**20
"""Last-level cache of a device whose sheet does not say. Assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The rated numbers of one device for one number format."""

    peak_flops_per_s: float
    bytes_per_s: float
    l2_bytes: float
    num_sms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A number format of a matmul: what an element occupies and whose peak it runs at."""

    name: str
    rated: tuple[str, ...]
    """Peaks that may rate it, best first."""
    input_bytes: float
    weight_bytes: float
    output_bytes: float = 2.0
    quantises: bool = False
    """The activation arrives in bf16 and is quantised first."""
    measured_as: tuple[str, ...] = ()
    """Formats whose measurements describe it, best first; itself is always first."""


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(name="bf16", rated=("bf16", "fp16"), input_bytes=2, weight_bytes=2),
        Format(name="fp16", rated=("fp16", "bf16"), input_bytes=2, weight_bytes=2, measured_as=("bf16",)),
        Format(name="fp32", rated=("fp32",), input_bytes=4, weight_bytes=4, output_bytes=4),
        Format(name="tf32", rated=("tf32", "fp32"), input_bytes=4, weight_bytes=4, output_bytes=4),
        Format(name="fp8", rated=("fp8",), input_bytes=1, weight_bytes=1, quantises=True),
        Format(name="fp8-block", rated=("fp8",), input_bytes=1, weight_bytes=1, quantises=True),
        Format(
            name="mxfp8",
            rated=("fp8",),
            input_bytes=1 + 1 / 32,
            weight_bytes=1 + 1 / 32,
            quantises=True,
            measured_as=("fp8-block", "fp8"),
        ),
        Format(
            name="nvfp4", rated=("fp4",), input_bytes=0.5 + 1 / 16, weight_bytes=0.5 + 1 / 16, quantises=True
        ),
        Format(name="int8", rated=("int8",), input_bytes=1, weight_bytes=1),
        Format(name="int8-weight-only", rated=("bf16", "fp16"), input_bytes=2, weight_bytes=1),
        Format(name="int4-weight-only", rated=("bf16", "fp16"), input_bytes=2, weight_bytes=0.5 + 2 / 128),
    )
}
"""Block scales are counted with their elements: 1 byte per 32 (MX), per 16 (nvfp4); 2 bytes per 128
(int4)."""

_SPELLINGS = {
    "float16": "fp16", "half": "fp16", "bfloat16": "bf16", "fp8-tensor": "fp8", "fp8block": "fp8-block",
    "fp4": "nvfp4", "int4": "int4-weight-only", "int4-wo": "int4-weight-only", "int8-wo": "int8-weight-only",
    "sq": "int8", "int8-w8a8": "int8", "w4a16": "int4-weight-only", "awq": "int4-weight-only",
    "gptq": "int4-weight-only", "float32": "fp32",
}  # fmt: skip


def find_format(dtype: str) -> Format:
    """Return the number format called `dtype` (case and underscores do not matter).

    Raises
    ------
    OutOfDomainError
        if no kernel model knows the format.
    """
    name = dtype.lower().replace("_", "-")
    name = _SPELLINGS.get(name, name)
    if name not in FORMATS:
        message = f"no kernel model for dtype {dtype!r}; known: {', '.join(FORMATS)}"
        raise OutOfDomainError(message)
    return FORMATS[name]


def machine_of(device: Device, fmt: Format) -> Machine:
    """Return the rated machine of `device` for `fmt`.

    Raises
    ------
    OutOfDomainError
        if the device rates none of the peaks that could run the format.
    """
    rated = [r for r in fmt.rated if getattr(device, f"{r}_flops_per_s") is not None]
    peak = device.peak_flops_per_s(rated[0] if rated else fmt.rated[0])
    return Machine(
        peak_flops_per_s=peak,
        bytes_per_s=device.memory_bytes_per_s,
        l2_bytes=device.l2_bytes or ASSUMED_L2_BYTES,
        num_sms=float(device.num_sms or ASSUMED_NUM_SMS),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of kernel: its shape columns, its physics and what a learned correction may look at."""

    name: str
    columns: tuple[str, ...]
    """Names of the shape columns, in the order of the fitted box."""
    start: Coefficients
    """Positive coefficients of the physics before any fit: what a fit starts from."""
    physics: Callable[[Shape, Machine, Format, Coefficients], Floats]
    """Seconds per row."""
    features: Callable[[Shape, Machine, Format], Floats]
    """Inputs of the learned correction; functions of the shape on the measured machine. shape (rows,
    features)"""
