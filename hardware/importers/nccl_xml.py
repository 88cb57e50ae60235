"""NCCL's topology file (``NCCL_TOPO_DUMP_FILE``): GPUs, their NVLinks and the network ports of one host."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from hardware.errors import SpecError
from hardware.importers.topology_matrix import TopologyMatrix

__all__ = ["read_nccl_xml"]

_SWITCH_CLASS = "0x068000"
"""PCI class of an NVSwitch bridge in `tclass`."""
_MEGABIT_BYTES = 1e6 / 8
"""`speed` counts Mb/s."""


def read_nccl_xml(path: Path) -> TopologyMatrix:
    """Return the host's matrix, with the rates of its network ports.

    Raises
    ------
    SpecError
        if it is no XML, holds no GPU, an NVLink leads to an unknown device, or a count or speed is no number.
    """
    try:
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ElementTree.ParseError) as error:
        raise SpecError(str(path), [f"cannot be read as XML ({error})"]) from None
    gpus = [(pci, gpu) for pci in root.iter("pci") for gpu in pci.findall("gpu")]
    if not gpus:
        raise SpecError(str(path), ["no <gpu> element found; expected a file that NCCL_TOPO_DUMP_FILE names"])
    names = {_bus(pci.get("busid", "")): f"GPU{number}" for number, (pci, _) in enumerate(gpus)}
    ports = {f"NIC{n}": net for n, net in enumerate(root.iter("net"))}
    parts = {names[_bus(pci.get("busid", ""))]: gpu for pci, gpu in gpus} | ports
    kinds = _paths(root, parts)
    problems: list[str] = []
    for pci, gpu in gpus:
        name = names[_bus(pci.get("busid", ""))]
        for link in gpu.findall("nvlink"):
            count, target = _number(link, "count", "1", name, problems), _bus(link.get("target", ""))
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
    speeds = {nic: _number(net, "speed", "0", net.get("name", nic), problems) for nic, net in ports.items()}
    if problems:
        raise SpecError(str(path), problems)
    return TopologyMatrix(
        devices=tuple(names.values()),
        nics=tuple(ports),
        kinds=kinds,
        nic_bytes_per_s={nic: speed * _MEGABIT_BYTES for nic, speed in speeds.items() if speed > 0},
    )


def _paths(root: ElementTree.Element, parts: dict[str, ElementTree.Element]) -> dict[tuple[str, str], str]:
    """Return the PCIe path of every pair as nvidia-smi names it: a common switch, a socket, or neither."""
    above = {child: parent for parent in root.iter() for child in parent}

    def chain(element: ElementTree.Element) -> list[ElementTree.Element]:
        return [element, *(chain(above[element]) if element in above else [])]

    # the innermost <pci> is the device itself, what stands above it are switches
    outer = {name: [e for e in chain(part) if e.tag in ("pci", "cpu")][1:] for name, part in parts.items()}

    def path(a: str, b: str) -> str:
        shared = {e.tag for e in outer[a] if e in outer[b]}
        return "PIX" if "pci" in shared else "NODE" if "cpu" in shared else "SYS"

    return {(a, b): path(a, b) for a in parts for b in parts if a != b}


def _number(element: ElementTree.Element, key: str, usual: str, where: str, problems: list[str]) -> int:
    """Return a whole number that is not negative; adds what is none to `problems`."""
    text = element.get(key, usual)
    if text.isdigit():
        return int(text)
    problems.append(f"{where}: {key} is {text!r}; expected a whole number")
    return 0


def _bus(text: str) -> str:
    """Return a PCI address without its leading zeros, which NCCL writes in two lengths."""
    return text.lower().lstrip("0:") or "0"


def _count(kind: str) -> int:
    return int(kind[2:]) if kind.startswith("NV") else 0
