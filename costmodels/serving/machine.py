"""The machine that a serving instance runs on, from a device's name alone: its usual node and network."""

from functools import cache

from costmodels.kernels.times import kernel_model
from costmodels.serving.operators import ServingMachine
from hardware.catalog import find_device, normal_name
from hardware.device import Device
from hardware.levels import Level, LinkKind

__all__ = ["device_machine", "serving_machine", "system_device"]

_NETWORK_BYTES_PER_S = 50e9
"""Per device, one way: one 400 Gb/s port, the usual network of 8-device nodes. Assumed."""
_PCIE_BYTES_PER_S = 32e9
"""PCIe 4.0 x16, where a sheet names no link. Assumed."""
_NODE_SIZES = {"gb200": 72, "gb300": 72, "ascend-910c": 384, "ascend-910c-die": 768}
"""Devices inside the scale-up domain where it is not a node of eight."""
_SUFFIXES = ("-sxm", "-oam", "-server", "-nvl72")
_TECHNOLOGIES = ((250e9, "nvlink2"), (400e9, "nvlink3"), (600e9, "nvlink4"), (2e12, "nvlink5"))
_OTHER_TECHNOLOGIES = {"amd": "xgmi", "huawei": "ub", "intel": "pcie4"}


def system_device(system: str) -> Device:
    """Return the device of a system named as benchmarks name it: ``h100_sxm``, ``b200_sxm``, ``gb200``.

    Raises
    ------
    UnknownNameError
        if no device has that name, with or without the form factor.
    """
    name = normal_name(system)
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return find_device(name)


def device_machine(device: Device, levels: tuple[Level, ...]) -> ServingMachine:
    """Return the machine of `device` inside the given levels."""
    return ServingMachine(device=device, kernels=kernel_model(device), levels=levels)


@cache
def serving_machine(device: Device) -> ServingMachine:
    """Return `device` in its usual node, nodes joined by its usual network."""
    scale_up = device.scale_up_bytes_per_s
    size = _NODE_SIZES.get(device.name, 8)
    technology = _OTHER_TECHNOLOGIES.get(device.vendor, "")
    kind = LinkKind.SWITCH
    if scale_up is None:
        technology, kind = "pcie4", LinkKind.PCIE
    elif device.vendor == "nvidia":
        technology = next((name for limit, name in _TECHNOLOGIES if scale_up < limit), "nvlink5")
    elif device.vendor == "amd":
        kind = LinkKind.MESH
    node = Level(
        name="node",
        size=size,
        bytes_per_s=scale_up or device.pcie_bytes_per_s or _PCIE_BYTES_PER_S,
        latency_s=2e-6,
        kind=kind,
        technology=technology,
        pair_bytes_per_s=scale_up / (size - 1) if scale_up and kind is LinkKind.MESH else None,
    )
    world = Level(
        name="world",
        size=size * 512,
        bytes_per_s=_NETWORK_BYTES_PER_S,
        latency_s=5e-6,
        kind=LinkKind.RAIL,
        technology="ib",
    )
    return device_machine(device, (node, world))
