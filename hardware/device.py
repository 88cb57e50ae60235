"""A device as its data sheet rates it; fitted efficiencies live with the cost models, never here."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from hardware.errors import OutOfDomainError
from hardware.units import Bytes, BytesPerSecond, FlopsPerSecond, Watts

__all__ = ["Device"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator model. All peaks are dense; bandwidths are one way and per device."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str
    """Catalogue name: lower case and hyphens."""
    vendor: str
    """nvidia, amd, huawei, google, intel, ..."""
    memory_bytes: Bytes
    memory_bytes_per_s: BytesPerSecond
    fp32_flops_per_s: FlopsPerSecond | None = None
    tf32_flops_per_s: FlopsPerSecond | None = None
    bf16_flops_per_s: FlopsPerSecond | None = None
    """Dense tensor-core peak; never the sparse marketing figure."""
    fp16_flops_per_s: FlopsPerSecond | None = None
    fp8_flops_per_s: FlopsPerSecond | None = None
    int8_flops_per_s: FlopsPerSecond | None = None
    fp4_flops_per_s: FlopsPerSecond | None = None
    tdp_w: Watts | None = None
    idle_w: Watts | None = None
    min_power_cap_w: Watts | None = None
    scale_up_bytes_per_s: BytesPerSecond | None = None
    """Total one-way bandwidth of the scale-up links (NVLink, xGMI, HCCS, ICI)."""
    pcie_bytes_per_s: BytesPerSecond | None = None
    num_sms: int | None = None
    """Streaming multiprocessors or their equivalent (compute units, cube cores)."""
    l2_bytes: Bytes | None = None
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.min_power_cap_w and self.tdp_w and self.min_power_cap_w > self.tdp_w:
            message = "min_power_cap_w must not exceed tdp_w"
            raise ValueError(message)
        if self.fp16_flops_per_s is None and self.bf16_flops_per_s is None:
            message = "one of bf16_flops_per_s and fp16_flops_per_s is needed"
            raise ValueError(message)

    def peak_flops_per_s(self, dtype: str) -> float:
        """Return the dense peak of `dtype`: fp32, tf32, bf16, fp16, fp8, int8 or fp4.

        Raises
        ------
        OutOfDomainError
            if the device has no rated peak for that dtype.
        """
        peak: float | None = getattr(self, f"{dtype}_flops_per_s", None)
        if peak is None:
            have = [f.removesuffix("_flops_per_s") for f in self.__slots__ if f.endswith("_flops_per_s")]
            rated = [d for d in have if getattr(self, f"{d}_flops_per_s") is not None]
            message = f"{self.name} has no rated {dtype} peak; rated: {', '.join(rated)}"
            raise OutOfDomainError(message)
        return peak
