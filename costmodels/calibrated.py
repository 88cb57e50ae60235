"""A calibration as the cost models read it: what was measured on one machine takes the place of what ships.

`using` makes one calibration current for everything that is predicted inside its ``with`` block; outside, the
shipped coefficients answer. A calibration that holds nothing about some kernel, link or stack leaves the
shipped answer in force there.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from costmodels.collectives.curves import Technology
from costmodels.in_force import in_force, standing_in
from costmodels.kernels.machine import Family, Floats, Format
from costmodels.kernels.surface import Surface
from costmodels.stacks import Stack

__all__ = ["Calibration", "KernelCalibration", "MemoryCurve", "current", "using"]

_ANY_FORMAT = ("context",)
"""Families of which one measured format answers for all: the cost model asks for attention in one only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCurve:
    """Time of memory-bound kernels: ``launch + min(b, cache) / cached rate + max(b - cache, 0) / rate``."""

    launch_s: float
    cache_bytes: float
    cached_bytes_per_s: float
    bytes_per_s: float

    def seconds(self, num_bytes: Floats) -> Floats:
        """Return the seconds that moving `num_bytes` takes."""
        inside = np.minimum(num_bytes, self.cache_bytes)
        out: Floats = (
            self.launch_s + inside / self.cached_bytes_per_s + (num_bytes - inside) / self.bytes_per_s
        )
        return out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelCalibration:
    """What was measured of one device's kernels."""

    device: str
    surfaces: Mapping[tuple[str, str], Surface] = field(default_factory=dict)
    """By family and number format."""
    memory: MemoryCurve | None = None
    norm: MemoryCurve | None = None
    """Of layer norms, which compute more per byte than plain element-wise kernels."""
    optimizer: MemoryCurve | None = None
    """Of one Adam step, with parameters in place of bytes."""
    attention_backward_ratio: float | None = None
    """Backward over forward."""

    def moving(self, *, norm: bool) -> MemoryCurve | None:
        """Return the curve of norms or of other memory-bound kernels."""
        return self.norm if norm and self.norm is not None else self.memory

    def find(self, family: Family, fmt: Format) -> Surface | None:
        """Return the measured surface of a family in a format, None where that was not measured."""
        found = self.surfaces.get((family.name, fmt.name))
        if found is None and family.name in _ANY_FORMAT:
            found = next((s for (name, _), s in sorted(self.surfaces.items()) if name == family.name), None)
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Everything that one set of samples says."""

    device: str
    """Name of the device that it describes."""
    sha256: str
    kernels: KernelCalibration
    technologies: Mapping[str, Technology] = field(default_factory=dict)
    stacks: Mapping[str, Stack] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)


_ONLY = ""
"""Name of the one calibration in force among the values that stand in."""


def current() -> Calibration | None:
    """Return the calibration in force, None outside any `using`."""
    return in_force(Calibration, _ONLY)


@contextmanager
def using(calibration: Calibration | None) -> Iterator[None]:
    """Make `calibration` the one in force; None changes nothing."""
    if calibration is None:
        yield
        return
    values: dict[tuple[type, str], Any] = {(Calibration, _ONLY): calibration}
    values |= {(Technology, name): found for name, found in calibration.technologies.items()}
    values |= {(Stack, name): found for name, found in calibration.stacks.items()}
    with standing_in(values):
        yield
