"""Fitted kernel coefficients as files: one JSON per measured device, one for the generic surface.

A device that was never measured borrows from the measured device that it most resembles, where the table
below names one (same dies, other links, memory or power), and from the pooled generic surface otherwise.
Either way its own rated peaks enter, and its error is wider.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from costmodels.kernels.machine import FORMATS, Family, Format, Machine, machine_of
from costmodels.kernels.samples import FAMILIES
from costmodels.kernels.surface import Surface
from hardware.device import Device
from hardware.errors import OutOfDomainError

__all__ = [
    "MEASURED",
    "SAME_DIE",
    "SCHEMA_VERSION",
    "Source",
    "find_surface",
    "rated_device",
    "rated_numbers",
    "source_of",
    "steady_file",
    "surface",
    "sustained_frac",
]

SCHEMA_VERSION = 1
MEASURED = ("a100-80gb", "b200", "gb200", "h100", "h200", "l40s")
"""Devices that have a coefficient file."""

SAME_DIE: dict[str, str] = {
    "a100-40gb": "a100-80gb",
    "a100-pcie-40gb": "a100-80gb",
    "a100-pcie-80gb": "a100-80gb",
    "a800-80gb": "a100-80gb",
    "h800": "h100",
    "h100-pcie": "h100",
    "h100-nvl": "h100",
    "h100-96gb-hbm2e": "h100",
    "gh200": "h200",
    "b300": "b200",
    "gb300": "gb200",
    "l4": "l40s",
    "rtx-4090": "l40s",
}
"""Devices built from the same dies or the same generation of dies as a measured one."""

_STEADY_FILE = {("gb200", "matmul", "bf16"): "b200"}
"""Whose products describe a device inside a step, where its own table was taken throttled. GB200's bf16 table
falls to 0.40 of peak beyond a TFLOP a product; its power tables reach 0.58 and 0.67 on the same shapes, other
tables of it 0.56 to 0.68 in the median (aiconfigurator@095f58a51), and B200's, of the same dies, 0.65."""
_ALIKE_UNITS_FRAC = 0.05
"""Another number of compute units moves the waves, and with them what a correction has learned."""
_ROOT = files("costmodels") / "data" / "coefficients" / "kernels"
_RATED = tuple(f"{p}_flops_per_s" for p in ("fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Whose measurements describe a device."""

    file: str
    measured: bool
    """The device itself was measured."""
    same_die: bool
    """The device resembles the measured one closely enough for the learned correction to hold."""


def source_of(device: Device) -> Source:
    """Return the coefficient file that describes `device`."""
    for name in (device.name, *device.aliases):
        if name in MEASURED:
            return Source(file=name, measured=True, same_die=True)
    if device.name in SAME_DIE:
        near = SAME_DIE[device.name]
        units = load(near)["rated"]["num_sms"]
        alike = device.num_sms is not None and abs(device.num_sms / units - 1.0) <= _ALIKE_UNITS_FRAC
        return Source(file=near, measured=False, same_die=alike)
    return Source(file="generic", measured=False, same_die=False)


def rated_numbers(device: Device) -> dict[str, float | None]:
    """Return the rated numbers that a fit depends on, to be stored beside its coefficients."""
    names = (*_RATED, "memory_bytes_per_s", "memory_bytes", "l2_bytes", "num_sms")
    return {name: getattr(device, name) for name in names}


def rated_device(name: str, rated: Mapping[str, Any]) -> Device:
    """Return the device as it was rated when it was fitted."""
    return Device(name=name, vendor="", **rated)


@cache
def load(name: str) -> dict[str, Any]:
    """Return the coefficient file called `name`, parsed."""
    data: dict[str, Any] = json.loads((_ROOT / f"{name}.json").read_text(encoding="utf-8"))
    if data["schema_version"] != SCHEMA_VERSION:
        found = data["schema_version"]
        message = f"kernel coefficients {name}.json have schema_version {found}, not {SCHEMA_VERSION}"
        raise OutOfDomainError(message)
    return data


@cache
def surface(file: str, family: str, dtype: str) -> Surface | None:
    """Return one surface of a coefficient file, or None where that format was not measured there."""
    data = load(file)
    entry = data["surfaces"].get(f"{family}/{dtype}")
    if entry is None:
        return None
    fmt = FORMATS[dtype]
    return Surface.from_json(
        entry,
        family=FAMILIES[family],
        fmt=fmt,
        machine=_fitted_machine(data, fmt),
        measured=file != "generic",
    )


def _fitted_machine(data: Mapping[str, Any], fmt: Format) -> Machine:
    if data["rated"] is None:
        return Machine(peak_flops_per_s=np.nan, bytes_per_s=np.nan, l2_bytes=np.nan, num_sms=np.nan)
    return machine_of(rated_device(data["device"], data["rated"]), fmt)


def sustained_frac(device: Device) -> float | None:
    """Return the share of the rated bf16 peak that large matmuls are known to sustain on an unmeasured
    device.
    """
    entry = load("sustained")["devices"].get(device.name)
    return None if entry is None else float(entry["sustained_frac"])


def steady_file(file: str, family: Family, fmt: Format) -> str:
    """Return the file that describes a family inside a real step: `file` but for throttled tables."""
    return _STEADY_FILE.get((file, family.name, fmt.measured_as[0] if fmt.measured_as else fmt.name), file)


def find_surface(file: str, family: Family, fmt: Format) -> tuple[Surface, bool]:
    """Return the best surface of `file` for a format, and whether it was measured in exactly that format.

    A format without measurements uses those of a format that it is measured as, then the bf16 surface's
    coefficients without its correction, then the generic file.
    """
    for name in (fmt.name, *fmt.measured_as):
        found = surface(file, family.name, name)
        if found is not None:
            return found, True
    for name in (fmt.name, *fmt.measured_as, "bf16"):
        for place in ("generic", file) if name != "bf16" else (file, "generic"):
            found = surface(place, family.name, name)
            if found is not None:
                return found, False
    message = f"no kernel coefficients for {family.name} in {fmt.name}"
    raise OutOfDomainError(message)
