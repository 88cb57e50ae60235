"""NCCL's topology file (``NCCL_TOPO_DUMP_FILE``): GPUs, their NVLinks and the network ports of one host."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from hardware.errors import SpecError
from hardware.importers.topology_matrix import TopologyMatrix

__all__ = ["read_nccl_xml"]

_SWITCH_CLASS = "0x068000"
"""PCI class of an NVSwitch bridge in `tclass`."""


def read_nccl_xml(path: Path) -> tuple[TopologyMatrix, float | None]:
    """Return the host's matrix, and the rate of its fastest network port [B/s], None without a port.

    Raises
    ------
    SpecError
        if it is no XML, holds no GPU, or an NVLink leads to an unknown device.
    """
    try:
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ElementTree.ParseError) as error:
        raise SpecError(str(path), [f"cannot be read as XML ({error})"]) from None
    gpus = [(pci, gpu) for pci in root.iter("pci") for gpu in pci.findall("gpu")]
    if not gpus:
        raise SpecError(str(path), ["no <gpu> element found; expected a file that NCCL_TOPO_DUMP_FILE names"])
    names = {_bus(pci.get("busid", "")): f"GPU{number}" for number, (pci, _) in enumerate(gpus)}
    kinds = {(a, b): "SYS" for a in names.values() for b in names.values() if a != b}
    problems = []
    for pci, gpu in gpus:
        name = names[_bus(pci.get("busid", ""))]
        for link in gpu.findall("nvlink"):
            count, target = int(link.get("count", "1")), _bus(link.get("target", ""))
            if link.get("tclass") == _SWITCH_CLASS or target not in names:
                if link.get("tclass") != _SWITCH_CLASS and target.strip("f:.") not in ("", "0"):
                    problems.append(f"{name}: nvlink to {link.get('target')}, which is no GPU of this file")
                for other in names.values():
                    if other != name:
                        kinds[name, other] = f"NV{count + _count(kinds[name, other])}"
            else:
                kinds[name, names[target]] = f"NV{count}"
    problems += [
        f"{a} - {b}: {kinds[a, b]} one way, {kinds[b, a]} the other"
        for a, b in kinds
        if a < b and kinds[a, b] != kinds[b, a]
    ]
    if problems:
        raise SpecError(str(path), problems)
    speeds = [float(net.get("speed", "0")) * 1e6 / 8 for net in root.iter("net")]
    nics = tuple(f"NIC{number}" for number in range(len(speeds)))
    matrix = TopologyMatrix(devices=tuple(names.values()), nics=nics, kinds=kinds, near={})
    return matrix, max(speeds) if speeds and max(speeds) > 0 else None


def _bus(text: str) -> str:
    """Return a PCI address without its leading zeros, which NCCL writes in two lengths."""
    return text.lower().lstrip("0:") or "0"


def _count(kind: str) -> int:
    return int(kind[2:]) if kind.startswith("NV") else 0
