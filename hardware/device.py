"""A device as its data sheet rates it; fitted efficiencies live with the cost models, never here.

Its file is ``data/devices/<name>.yaml``: the fields below, quantities as text with units, and beside them a
``sources:`` map that says for every number where it comes from (see `Source`).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from hardware.errors import OutOfDomainError
from hardware.units import Bytes, BytesPerSecond, FlopsPerSecond, UsdPerHour, Watts

__all__ = ["Confidence", "Device", "Price", "Source"]

Confidence = Literal["read", "recalled", "derived"]
"""read: seen in the source named; recalled: from memory of it, not re-read; derived: computed from others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where one number of a data file comes from."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: Literal["datasheet", "measured", "assumed"]
    ref: str
    date: str
    """When the source was published or read: a year, or year and month."""
    confidence: Confidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What one device costs per hour at one provider, on a date; it carries its own source."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    provider: str
    product: str
    """Instance type or offer that the price was divided from."""
    usd_per_hour: UsdPerHour
    """Per device, on demand unless `spot`."""
    date: str
    ref: str
    confidence: Confidence
    region: str | None = None
    spot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator model. All peaks are dense; bandwidths are one way and per device."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    """Catalogue name: lower case and hyphens."""
    vendor: str
    """nvidia, amd, huawei, google, intel, ..."""
    memory_bytes: Bytes
    """Total that the driver reports, where known; the label on the box otherwise."""
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
    num_sms: Annotated[int, Field(gt=0)] | None = None
    """Streaming multiprocessors or their equivalent (compute units, cube cores)."""
    l2_bytes: Bytes | None = None
    aliases: tuple[str, ...] = ()
    prices: tuple[Price, ...] = ()

    def __post_init__(self) -> None:
        if self.min_power_cap_w and self.tdp_w and self.min_power_cap_w > self.tdp_w:
            message = "min_power_cap_w must not exceed tdp_w"
            raise ValueError(message)
        if self.fp16_flops_per_s is None and self.bf16_flops_per_s is None:
            message = "one of bf16_flops_per_s and fp16_flops_per_s is needed"
            raise ValueError(message)

    def rates(self, dtype: str) -> bool:
        """Return whether the data sheet gives a peak of `dtype`."""
        return getattr(self, f"{dtype}_flops_per_s", None) is not None

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
