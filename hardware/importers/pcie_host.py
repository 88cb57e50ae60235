"""A host whose devices reach each other through PCIe only: switches, sockets, and the ports beside them.

Which devices share a switch (PIX, PXB) or a socket (anything but SYS) is what ``nvidia-smi topo -m`` prints.
What such hosts attain is not: devices without peer-to-peer access stage through the host's memory, which all
of a socket share, and between sockets they get less than the links are rated at.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["pcie_host", "pcie_technology", "socket_blocks"]

Kinds = dict[tuple[str, str], str]

_LATENCY = "1.5 us"
"""A quarter of the 6 us that an all-reduce of two L40S takes."""
_PCIE5_FROM_BYTES_PER_S = 60e9
_STAGED = {"pcie4": ("10 GB/s", "1.7 GB/s"), "pcie5": ("48 GB/s", "32 GB/s")}
"""Of one socket's memory, and between sockets, as NCCL was measured on eight L40S and on eight RTX PRO 6000:
4-GPU rings at 5 and 25 GB/s, 8-GPU rings at 1.2 to 2 and at 23 to 25 GB/s (aiconfigurator's tables)."""
_SAME_SWITCH = ("PIX", "PXB")


def pcie_technology(bytes_per_s: float) -> str:
    """Return the generation of a device's PCIe link of that rate, as the measured curves are named."""
    return "pcie5" if bytes_per_s >= _PCIE5_FROM_BYTES_PER_S else "pcie4"


def pcie_host(
    devices: tuple[str, ...], nics: tuple[str, ...], kinds: Kinds, pcie_bytes_per_s: float
) -> dict[str, list[dict[str, Any]]]:
    """Return parts (accelerators and ports apart), pools and links of the host.

    Devices are called gpu0, gpu1 ... and ports nic0, nic1 ... in the order given.
    """
    technology = pcie_technology(pcie_bytes_per_s)
    link = {
        "technology": technology,
        "bytes_per_s": f"{pcie_bytes_per_s / 1e9:g} GB/s",
        "latency_s": _LATENCY,
    }
    socket_rate, cross_rate = _STAGED[technology]
    switches = _blocks(devices, lambda a, b: kinds[a, b] in _SAME_SWITCH)
    sockets = socket_blocks(devices, kinds)
    parts = [{"id": f"psw{i}", "kind": "switch"} for i in range(len(switches))]
    parts += [{"id": f"cpu{i}", "kind": "cpu"} for i in range(len(sockets))]
    switch_of = {device: i for i, block in enumerate(switches) for device in block}
    socket_of = {device: i for i, block in enumerate(sockets) for device in block}
    links: list[dict[str, Any]] = [
        {"pairs": [[f"gpu{n}", f"psw{switch_of[device]}"] for n, device in enumerate(devices)], **link}
    ]
    for i in range(len(sockets)):
        up = [[f"psw{n}", f"cpu{i}"] for n, block in enumerate(switches) if socket_of[block[0]] == i]
        links.append({"pairs": up, **link, "pool": f"socket{i}"})
    between = [[f"cpu{i}", f"cpu{j}"] for j in range(len(sockets)) for i in range(j)]
    if between:
        links.append(
            {"pairs": between, "technology": "upi", "bytes_per_s": cross_rate, "latency_s": _LATENCY}
        )
    ports = [[f"nic{n}", _beside(nic, devices, kinds, switch_of, socket_of)] for n, nic in enumerate(nics)]
    links += [{"pairs": ports, **link}] if ports else []
    pools = [{"name": f"socket{i}", "bytes_per_s": socket_rate} for i in range(len(sockets))]
    return {"parts": parts, "pools": pools, "links": links}


def socket_blocks(devices: tuple[str, ...], kinds: Kinds) -> list[list[str]]:
    """Return the devices of each socket: those that a path which is not SYS joins."""
    return _blocks(devices, lambda a, b: kinds[a, b] != "SYS")


def _beside(
    nic: str,
    devices: tuple[str, ...],
    kinds: Kinds,
    switch_of: dict[str, int],
    socket_of: dict[str, int],
) -> str:
    """Return the switch that a port shares with a device, or else its socket, the first where unknown."""
    for device in devices:
        if kinds.get((nic, device)) in _SAME_SWITCH:
            return f"psw{switch_of[device]}"
    near = (device for device in devices if kinds.get((nic, device), "SYS") != "SYS")
    return f"cpu{socket_of[next(near, devices[0])]}"


def _blocks(devices: tuple[str, ...], joined: Callable[[str, str], bool]) -> list[list[str]]:
    """Return the devices that are joined to each other, block by block, in their order."""
    blocks: list[list[str]] = []
    for device in devices:
        own = [block for block in blocks if any(joined(device, other) for other in block)]
        merged = [*(member for block in own for member in block), device]
        blocks = [block for block in blocks if block not in own] + [merged]
    return sorted(([d for d in devices if d in block] for block in blocks), key=lambda b: devices.index(b[0]))
