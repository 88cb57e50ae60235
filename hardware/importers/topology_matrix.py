"""``nvidia-smi topo -m``, ``rocm-smi --showtopo``, ``npu-smi info -t topo``: a node from its link types.

A matrix says which pairs are joined directly and by how many links; rates come from the device's data sheet,
its total scale-up bandwidth over the links counted. NVSwitch nodes show every pair with all links (NV18 to
each of seven others); direct meshes show the links of each pair.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardware.device import Device
from hardware.errors import SpecError

__all__ = ["TopologyMatrix", "node_block", "read_topology"]

_PCIE_PATHS = ("PIX", "PXB", "PHB", "NODE", "SYS", "PCIE", "SOC")
_LATENCY = "1 us"
"""Assumed for a link whose latency no tool prints."""
_PCIE_RATE = "32 GB/s"
"""Assumed (PCIe 4 x16) where the device's data sheet gives no PCIe rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyMatrix:
    """Types of the links between the devices of one host."""

    devices: tuple[str, ...]
    nics: tuple[str, ...]
    kinds: dict[tuple[str, str], str]
    """Link type by pair, as the tool names it: NV18, SYS, XGMI, HCCS ..."""
    near: dict[str, tuple[str, ...]]
    """Devices that share a PCIe switch with each NIC."""


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
        text = found.group(1)
    return _parse(path, text)


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
    near = {nic: tuple(d for d in devices if kinds[nic, d] in ("PIX", "PXB")) for nic in nics}
    return TopologyMatrix(devices=devices, nics=nics, kinds=kinds, near=near)


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
    parts: list[dict[str, Any]] = [
        {"id": "gpu", "count": len(matrix.devices), "kind": "accelerator"},
        {"id": "cpu", "kind": "cpu"},
    ]
    pcie = f"{device.pcie_bytes_per_s / 1e9:g} GB/s" if device.pcie_bytes_per_s else _PCIE_RATE
    links: list[dict[str, Any]] = [
        {"each": ["gpu*", "cpu"], "technology": "pcie4", "bytes_per_s": pcie, "latency_s": _LATENCY}
    ]
    if any(counts.values()):
        if device.scale_up_bytes_per_s is None:
            raise SpecError(where, [f"device {device.name} has no rated scale-up bandwidth for these links"])
        more_parts, more_links = _scale_up(matrix, counts, device.scale_up_bytes_per_s)
        parts += more_parts
        links += more_links
    if matrix.nics:
        parts.append(
            {
                "id": "nic",
                "count": len(matrix.nics),
                "kind": "nic",
                "technology": "ib",
                "bytes_per_s": "25 GB/s",
            }
        )
        links.append(
            {"each": ["nic*", "cpu"], "technology": "pcie4", "bytes_per_s": pcie, "latency_s": _LATENCY}
        )
    return {"device": device.name, "parts": parts, "links": links}


def _direct_links(kind: str) -> int:
    """Return how many direct links a type stands for; 0 for a path through the host."""
    numbered = re.fullmatch(r"NV(\d+)", kind)
    if numbered:
        return int(numbered.group(1))
    return 1 if kind in ("XGMI", "HCCS", "HCCS_SW", "SIO") else 0


def _scale_up(
    matrix: TopologyMatrix, counts: dict[tuple[str, str], int], total_bytes_per_s: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return parts and links of the scale-up network: a switch, or the pairs that are joined."""
    first = matrix.devices[0]
    size = len(matrix.devices)
    technology = {"XGMI": "xgmi", "HCCS": "hccs", "HCCS_SW": "hccs", "SIO": "hccs"}.get(
        next(kind for pair, kind in matrix.kinds.items() if counts.get(pair)), "nvlink"
    )
    switched = "HCCS_SW" in matrix.kinds.values() or (
        technology == "nvlink"
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
