"""From imported measurements to the text of a cluster file."""

from pathlib import Path
from typing import Any

import yaml

from hardware.catalog import find_device, find_node
from hardware.errors import InputError, SpecError
from hardware.importers.mpigraph import import_mpigraph
from hardware.importers.nccl_tests import CollectiveRun, import_nccl_tests
from hardware.importers.nccl_xml import read_nccl_xml
from hardware.importers.topology_matrix import node_block, read_topology

__all__ = ["KINDS", "imported_cluster", "imported_runs"]

KINDS = ("mpigraph", "nccl-tests", "nvidia-smi-topo", "rocm-smi", "npu-smi", "nccl-xml")
Document = dict[str, Any]


def imported_cluster(
    kind: str,
    paths: list[Path],
    *,
    node: str | None,
    device: str | None,
    name: str,
    catalogs: tuple[str, ...] = (),
) -> str:
    """Return the text of a cluster file made from what a tool printed.

    Parameters
    ----------
    kind : one of `KINDS`.
    node : catalogue name of the hosts' node template; needed where the tool shows the network only.
    device : catalogue name of the device; needed where the tool shows the inside of a host.

    Raises
    ------
    InputError, SpecError, UnknownNameError
    """
    if kind not in KINDS:
        message = f"cannot import {kind!r}; accepted: {', '.join(KINDS)}"
        raise InputError(message)
    if not paths:
        message = "import needs at least one file"
        raise InputError(message)
    if kind in ("mpigraph", "nccl-tests"):
        if node is None:
            message = f"import {kind} needs --node: the template of the hosts that were measured"
            raise InputError(message)
        find_node(node, catalogs=catalogs)
        document = _measured(paths, node) if kind == "mpigraph" else _collectives(paths, node, catalogs)
    else:
        document = _topologies(kind, paths, node=node, device=device, catalogs=catalogs)
    notes = _doubts(paths, str(node), catalogs) if kind == "nccl-tests" else []
    return _text({"name": name, **document}, kind, paths, notes)


def imported_runs(paths: list[Path]) -> tuple[CollectiveRun, ...]:
    """Return the collective measurements of nccl-tests outputs."""
    return import_nccl_tests(paths)


def _measured(paths: list[Path], node: str) -> Document:
    links = import_mpigraph(paths)
    return {"groups": [{"node": node, "count": links.num_hosts}], "measured_links": links.entry()}


def _collectives(paths: list[Path], node: str, catalogs: tuple[str, ...]) -> Document:
    """Return a cluster of the hosts seen, whose fabric does what all of them were measured to do together."""
    runs = import_nccl_tests(paths)
    template = find_node(node, catalogs=catalogs)
    hosts = tuple(dict.fromkeys(host for run in runs for host in run.hosts))
    document: Document = {"groups": [{"node": node, "count": len(hosts)}]}
    rings = [
        run for run in runs if len(run.hosts) > 1 and run.op in ("all_reduce", "all_gather", "reduce_scatter")
    ]
    if rings and template.fabrics:
        # a ring over whole nodes uses every NIC of a node, so its bus bandwidth is the node's
        rate = max(run.peak_bus_bytes_per_s for run in rings)
        usual = template.fabrics[0]
        fabric = {"name": usual.name, "kind": str(usual.kind), "technology": usual.technology}
        document["fabrics"] = [
            {
                **fabric,
                "latency_s": f"{usual.latency_s * 1e6:g} us",
                "node_bytes_per_s": f"{rate / 1e9:.6g} GB/s",
            }
        ]
    return document


def _doubts(paths: list[Path], node: str, catalogs: tuple[str, ...]) -> list[str]:
    """Return why runs of collectives may not say what a node's fabric does."""
    template = find_node(node, catalogs=catalogs)
    family = template.device.name.split("-")[0]
    notes = []
    for run in import_nccl_tests(paths):
        whole = len(run.hosts) * template.num_devices
        if len(run.hosts) > 1 and run.num_devices < whole:
            used = f"{run.num_devices} of the {whole} devices of its {len(run.hosts)} hosts"
            notes.append(f"{run.source}: ran on {used}; a node may send more than node_bytes_per_s")
        if run.device_label.startswith(("NVIDIA", "Tesla")) and family not in run.device_label.lower():
            held = f"node {node} holds {template.device.name}"
            notes.append(f"{run.source}: ran on {run.device_label}, and {held}")
    return notes


def _topologies(
    kind: str, paths: list[Path], *, node: str | None, device: str | None, catalogs: tuple[str, ...]
) -> Document:
    """Return a cluster with one group per kind of host found, each host one file."""
    if device is None and node is None:
        message = (
            f"import {kind} needs --device (or --node, whose device is taken): rates come from its data sheet"
        )
        raise InputError(message)
    part = (
        find_device(device, catalogs=catalogs) if device else find_node(str(node), catalogs=catalogs).device
    )
    blocks: list[Document] = []
    counts: list[int] = []
    for path in paths:
        matrix = read_nccl_xml(path) if kind == "nccl-xml" else read_topology(path, kind)
        block = node_block(matrix, part, str(path))
        if block in blocks:
            counts[blocks.index(block)] += 1
        else:
            blocks.append(block)
            counts.append(1)
    if len(paths) > 1 and any(all(p["kind"] != "nic" for p in block["parts"]) for block in blocks):
        raise SpecError(kind, ["several hosts need NICs to join them, and one of the files shows none"])
    names = [f"imported-{i}" for i in range(len(blocks))]
    document: Document = {
        "groups": [{"node": n, "count": c} for n, c in zip(names, counts, strict=True)],
        "nodes": dict(zip(names, blocks, strict=True)),
    }
    if len(paths) > 1:
        document["fabrics"] = [{"name": "network", "kind": "clos", "technology": "ib", "latency_s": "5 us"}]
    return document


def _text(document: Document, kind: str, paths: list[Path], notes: list[str]) -> str:
    body = yaml.safe_dump(document, sort_keys=False, width=200, allow_unicode=True)
    said = "".join(f"# note: {note}\n" for note in notes)
    return f"# made by 'meshwright import {kind}' from {', '.join(p.name for p in paths)}\n{said}{body}"
