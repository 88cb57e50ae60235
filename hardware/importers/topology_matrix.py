"""``nvidia-smi topo -m``, ``rocm-smi --showtopo``, ``npu-smi info -t topo``: a node from its link types.

A matrix says which pairs are joined directly and by how many links; rates come from the device's data sheet,
its total scale-up bandwidth over the links counted. NVSwitch nodes show every pair with all links (NV18 to
each of seven others); direct meshes show the links of each pair.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hardware.device import Device
from hardware.errors import SpecError
from hardware.importers.pcie_host import pcie_host, pcie_technology, socket_blocks

__all__ = ["TopologyMatrix", "node_block", "nvlink_technology", "read_topology"]

_PCIE_PATHS = ("PIX", "PXB", "PHB", "NODE", "SYS", "PCIE", "SOC")
_LATENCY = "1 us"
"""Assumed for a link whose latency no tool prints."""
_PCIE_BYTES_PER_S = 32e9
"""Assumed (PCIe 4 x16) where the device's data sheet gives no PCIe rate."""
_CPU_LINK = {"technology": "cpu-link", "bytes_per_s": "24 GB/s"}
"""Assumed between the sockets of a host whose devices have links of their own inside each."""
_NIC_BYTES_PER_S = 25e9
"""Assumed (200 Gb/s) of a port whose rate the tool does not print."""
_NVLINK = {
    "nvlink2": ("v100",),
    "nvlink3": ("a100", "a800", "a30", "a40", "a6000", "rtx-3090"),
    "nvlink4": ("h100", "h200", "h20", "h800", "gh200"),
    "nvlink5": ("b200", "b300", "gb200", "gb300"),
}
"""Generation of NVLink by device, as the measured curves are named."""
_REDUCING = ("nvlink4", "nvlink5")
"""Generations whose switch adds (NVLS)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyMatrix:
    """Types of the links between the devices of one host."""

    devices: tuple[str, ...]
    nics: tuple[str, ...]
    kinds: dict[tuple[str, str], str]
    """Link type by pair, as the tool names it: NV18, SYS, XGMI, HCCS ..."""
    nic_bytes_per_s: dict[str, float]
    """Rate of each network port that the tool prints one of."""


def read_topology(path: Path, tool: str) -> TopologyMatrix:
    """Return the matrix that a tool printed.

    Parameters
    ----------
    tool : "nvidia-smi-topo", "rocm-smi" or "npu-smi".

    Raises
    ------
    SpecError
        if there is no matrix, a row is short, or the two directions of a pair differ.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(str(path), [f"cannot be read ({error})"]) from None
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    if tool == "rocm-smi":
        found = re.search(r"Link Type between two GPUs[^\n]*\n(.*?)(?:\n=|\Z)", text, re.DOTALL)
        if found is None:
            raise SpecError(str(path), ["no section 'Link Type between two GPUs'; run rocm-smi --showtopo"])
        hops = re.search(r"Hops between two GPUs[^\n]*\n(.*?)(?:\n=|\Z)", text, re.DOTALL)
        matrix = _parse(path, found.group(1))
        return matrix if hops is None else _direct_only(matrix, _parse(path, hops.group(1)))
    return _parse(path, text)


def _direct_only(matrix: TopologyMatrix, hops: TopologyMatrix) -> TopologyMatrix:
    """Return the matrix without links between devices that are several hops apart, which others forward."""
    kinds = {
        pair: "FORWARDED" if kind == "XGMI" and hops.kinds.get(pair, "1") != "1" else kind
        for pair, kind in matrix.kinds.items()
    }
    return replace(matrix, kinds=kinds)


def _parse(path: Path, text: str) -> TopologyMatrix:
    lines = [line for line in text.splitlines() if line.strip()]
    begin = next(
        (
            i
            for i, line in enumerate(lines)
            if re.match(r"\s*(GPU|NPU)0\b.*\b(GPU|NPU)\d|\s+(GPU|NPU)0\b", line)
        ),
        None,
    )
    if begin is None:
        raise SpecError(
            str(path), ["no matrix found; expected a heading that lists GPU0 GPU1 ... or NPU0 ..."]
        )
    columns = re.findall(r"\b(?:GPU|NPU|NIC|mlx5_|hfi1_|rdma)\d+\b", lines[begin])
    rows: dict[str, list[str]] = {}
    for line in lines[begin + 1 :]:
        cells = line.split()
        if cells and cells[0] in columns:
            rows[cells[0]] = cells[1 : 1 + len(columns)]
    problems = [f"no row for {name}" for name in columns if name not in rows]
    problems += [
        f"row {n}: {len(c)} entries for {len(columns)} columns"
        for n, c in rows.items()
        if len(c) < len(columns)
    ]
    if problems:
        raise SpecError(str(path), problems)
    kinds = {(a, b): rows[a][j].upper() for a in columns for j, b in enumerate(columns) if a != b}
    uneven = [
        f"{a} - {b}: {kinds[a, b]} one way, {kinds[b, a]} the other"
        for a, b in kinds
        if a < b and kinds[a, b] != kinds[b, a]
    ]
    if uneven:
        raise SpecError(str(path), uneven)
    devices = tuple(name for name in columns if re.match(r"GPU|NPU", name))
    nics = tuple(name for name in columns if name not in devices)
    return TopologyMatrix(
        devices=devices, nics=_used_ports(devices, nics, kinds), kinds=kinds, nic_bytes_per_s={}
    )


def _used_ports(
    devices: tuple[str, ...], nics: tuple[str, ...], kinds: dict[tuple[str, str], str]
) -> tuple[str, ...]:
    """Return the ports that share a PCIe switch with a device; all of them where none does.

    Boards with a port per device have further ones, for storage and management, on other switches.
    """
    near = tuple(nic for nic in nics if any(kinds[nic, device] in ("PIX", "PXB") for device in devices))
    return near or nics


def node_block(matrix: TopologyMatrix, device: Device, where: str) -> dict[str, Any]:
    """Return the `nodes:` entry of a cluster file for that host.

    Raises
    ------
    SpecError
        if the tool shows scale-up links and the device's data sheet has no scale-up rate.
    """
    counts = {
        pair: _direct_links(kind) for pair, kind in matrix.kinds.items() if set(pair) <= set(matrix.devices)
    }
    pcie_bytes_per_s = device.pcie_bytes_per_s or _PCIE_BYTES_PER_S
    gpus = {"id": "gpu", "count": len(matrix.devices), "kind": "accelerator"}
    nics = _ports(matrix)
    if len(matrix.devices) > 1 and not any(counts.values()):
        host = pcie_host(matrix.devices, matrix.nics, matrix.kinds, pcie_bytes_per_s)
        return {"device": device.name, **host, "parts": [gpus, *host["parts"], *nics]}
    pcie = {
        "technology": pcie_technology(pcie_bytes_per_s),
        "bytes_per_s": f"{pcie_bytes_per_s / 1e9:g} GB/s",
        "latency_s": _LATENCY,
    }
    sockets = socket_blocks(matrix.devices, matrix.kinds)
    parts: list[dict[str, Any]] = [gpus, *({"id": f"cpu{i}", "kind": "cpu"} for i in range(len(sockets)))]
    socket_of = {device: i for i, block in enumerate(sockets) for device in block}
    seats = [[f"gpu{n}", f"cpu{socket_of[device]}"] for n, device in enumerate(matrix.devices)]
    links: list[dict[str, Any]] = [{"pairs": seats, **pcie}]
    if len(sockets) > 1:
        between = [[f"cpu{i}", f"cpu{j}"] for j in range(len(sockets)) for i in range(j)]
        links.append({"pairs": between, **_CPU_LINK, "latency_s": _LATENCY})
    if any(counts.values()):
        if device.scale_up_bytes_per_s is None:
            raise SpecError(where, [f"device {device.name} has no rated scale-up bandwidth for these links"])
        more_parts, more_links = _scale_up(matrix, counts, device)
        parts += more_parts
        links += more_links
    links += [{"each": ["nic*", "cpu0"], **pcie}] if nics else []
    return {"device": device.name, "parts": parts + nics, "links": links}


def _ports(matrix: TopologyMatrix) -> list[dict[str, Any]]:
    """Return the network ports, each with its own rate where the tool prints one."""
    return [
        {
            "id": f"nic{number}",
            "kind": "nic",
            "technology": "ib",
            "bytes_per_s": f"{matrix.nic_bytes_per_s.get(nic, _NIC_BYTES_PER_S) / 1e9:g} GB/s",
        }
        for number, nic in enumerate(matrix.nics)
    ]


def _direct_links(kind: str) -> int:
    """Return how many direct links a type stands for; 0 for a path through the host."""
    numbered = re.fullmatch(r"NV(\d+)", kind)
    if numbered:
        return int(numbered.group(1))
    return 1 if kind in ("XGMI", "HCCS", "HCCS_SW", "SIO") else 0


def nvlink_technology(device: str) -> str:
    """Return the generation of NVLink of a device, ``nvlink`` where it is not known."""
    found = [name for name, families in _NVLINK.items() if device.startswith(families)]
    return found[0] if found else "nvlink"


def _scale_up(
    matrix: TopologyMatrix, counts: dict[tuple[str, str], int], device: Device
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return parts and links of the scale-up network: a switch, or the pairs that are joined."""
    total_bytes_per_s = device.scale_up_bytes_per_s or 0.0
    first = matrix.devices[0]
    size = len(matrix.devices)
    technology = {"XGMI": "xgmi", "HCCS": "hccs", "HCCS_SW": "hccs", "SIO": "hccs"}.get(
        next(kind for pair, kind in matrix.kinds.items() if counts.get(pair)), nvlink_technology(device.name)
    )
    switched = "HCCS_SW" in matrix.kinds.values() or (
        technology.startswith("nvlink")
        and size > 2
        and len(set(counts.values())) == 1
        and counts[first, matrix.devices[1]] >= 6
    )
    if switched:
        rate = f"{total_bytes_per_s / 1e9:g} GB/s"
        link = {
            "each": ["gpu*", "scale-up-switch"],
            "technology": technology,
            "bytes_per_s": rate,
            "latency_s": _LATENCY,
            "in_network_reduce": technology in _REDUCING,
        }
        return [{"id": "scale-up-switch", "kind": "switch"}], [link]
    most = max(sum(counts[a, b] for b in matrix.devices if b != a) for a in matrix.devices)
    pairs = [
        [f"gpu{i}", f"gpu{j}", counts[a, b]]
        for i, a in enumerate(matrix.devices)
        for j, b in enumerate(matrix.devices)
        if i < j and counts[a, b]
    ]
    rate = f"{total_bytes_per_s / most / 1e9:g} GB/s"
    return [], [{"pairs": pairs, "technology": technology, "bytes_per_s": rate, "latency_s": _LATENCY}]
