"""Catalogue entries for people, and as plain documents."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from costmodels.graph import Attention, Experts, ModelGraph, Operator
from hardware.cluster import Cluster, NodeTemplate
from hardware.device import Device, Source
from hardware.levels import Level
from hardware.units import format_quantity
from planner.plan_io import plan_document
from planner.render import console, print_table

__all__ = [
    "model_document",
    "node_document",
    "print_cluster",
    "print_clusters",
    "print_device",
    "print_devices",
    "print_model",
    "print_models",
    "print_node",
    "print_nodes",
]

_UNITS = (
    ("_flops_per_s", "FLOP/s"),
    ("_bytes_per_s", "B/s"),
    ("_bytes", "B"),
    ("_usd_per_hour", "USD/h"),
    ("_w", "W"),
    ("_s", "s"),
)


def _words(name: str, value: object) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, float):
        unit = next((u for suffix, u in _UNITS if name.endswith(suffix)), "")
        return format_quantity(value, unit) if unit else f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value)


def print_devices(found: Sequence[Device]) -> None:
    """Print one line per device."""
    columns = (
        "name",
        "vendor",
        "memory_bytes",
        "memory_bytes_per_s",
        "bf16_flops_per_s",
        "fp16_flops_per_s",
        "fp8_flops_per_s",
        "scale_up_bytes_per_s",
        "tdp_w",
    )
    titles = ["device", "vendor", "memory", "bandwidth", "bf16", "fp16", "fp8", "scale-up", "TDP"]
    print_table("", titles, ([_words(c, getattr(d, c)) for c in columns] for d in found))


def print_device(device: Device, sources: Mapping[str, Source]) -> None:
    """Print every rated number of a device and where it comes from."""
    rows = []
    for f in fields(Device):
        value = getattr(device, f.name)
        if value is None or value == ():
            continue
        source = sources.get(f.name)
        words = " ".join(str(v) for v in plan_document(source).values() if v) if source is not None else ""
        rows.append([f.name, _words(f.name, value), words])
    print_table(device.name, ["figure", "value", "source"], rows)


def _level_rows(levels: Sequence[Level]) -> list[list[str]]:
    return [
        [
            level.name,
            str(level.size),
            format_quantity(level.bytes_per_s, "B/s"),
            format_quantity(level.latency_s, "s"),
            level.kind.value,
            level.technology,
            "yes" if level.in_network_reduce else "",
        ]
        for level in levels
    ]


_LEVEL_COLUMNS = ("level", "devices", "per device, one way", "latency", "kind", "technology", "switch adds")


def node_document(node: NodeTemplate) -> dict[str, Any]:
    """Return a node as JSON types."""
    topology = node.topology
    return {
        "name": node.name,
        "device": node.device.name,
        "num_devices": node.num_devices,
        "num_hosts": node.num_hosts,
        "parts": plan_document(topology.parts),
        "links": plan_document(topology.links),
        "pools": plan_document(topology.pools),
        "levels": plan_document(node.levels),
    }


def print_nodes(found: Sequence[NodeTemplate]) -> None:
    """Print one line per node template."""
    rows = [
        [n.name, f"{n.num_devices} x {n.device.name}", str(n.num_hosts), ", ".join(f.name for f in n.fabrics)]
        for n in found
    ]
    print_table("", ["node", "devices", "hosts", "fabrics"], rows)


def print_node(node: NodeTemplate) -> None:
    """Print a node's levels, parts and links."""
    out = console()
    out.print(f"{node.name}: {node.num_devices} x {node.device.name} in {node.num_hosts} host(s)\n")
    print_table("levels", _LEVEL_COLUMNS, _level_rows(node.levels))
    out.print()
    rows = [
        [
            f"{link.a} - {link.b}",
            str(link.count),
            link.technology,
            format_quantity(link.bytes_per_s, "B/s"),
            link.pool or "",
        ]
        for link in node.topology.links
    ]
    print_table("links", ["between", "count", "technology", "each, one way", "shares"], rows)


def print_clusters(found: Sequence[Cluster]) -> None:
    """Print one line per cluster."""
    rows = []
    for c in found:
        groups = ", ".join(f"{g.count} x {g.node.name}" for g in c.groups)
        per_node = f"{c.groups[0].node.num_devices} x {c.groups[0].node.device.name}"
        rows.append([c.name, groups, per_node, str(c.num_devices)])
    print_table("", ["cluster", "nodes", "a node holds", "devices"], rows)


def print_cluster(cluster: Cluster, document: Mapping[str, Any]) -> None:
    """Print a cluster's levels and what rings, cuts and all-to-alls get inside its nodes."""
    out = console()
    groups = ", ".join(f"{g.count} x {g.node.name} ({', '.join(g.fabrics)})" for g in cluster.groups)
    out.print(f"{cluster.name}: {cluster.num_devices} devices, {groups}\n")
    print_table("levels, inner to outer", _LEVEL_COLUMNS, _level_rows(cluster.levels))
    for name, figures in document["nodes"].items():
        out.print()
        rows = [[label, _rate(figures[key])] for key, label in _FIGURES.items()]
        print_table(f"inside one {name}, bounds from its links", ["figure", "one way"], rows)
        for size, found in figures["tilings"].items():
            tiles = "; ".join(
                " ".join("{" + ",".join(map(str, t)) + "}" for t in f["tiles"]) for f in found[:4]
            )
            more = f" and {len(found) - 4} more" if len(found) > 4 else ""
            links = ", ".join(map(str, found[0]["internal_links"]))
            out.print(f"best tiles of {size}: {tiles}{more} ({links} links inside)", soft_wrap=True)


_FIGURES = {
    "ring_bytes_per_s": "ring through all devices, bus bandwidth",
    "bisection_bytes_per_s": "narrowest cut into halves",
    "all_to_all_bytes_per_s_per_device": "all-to-all, sent by each device",
}


def _rate(value: float | None) -> str:
    return "n/a" if value is None else format_quantity(value, "B/s")


def _operators(model: ModelGraph) -> list[Operator]:
    return [op for block in model.blocks for op in block.operators]


def model_document(model: ModelGraph) -> dict[str, Any]:
    """Return a model's figures as JSON types."""
    attention = next((op for op in _operators(model) if isinstance(op, Attention)), None)
    experts = next((op for op in _operators(model) if isinstance(op, Experts)), None)
    return {
        "name": model.name,
        "family": model.family,
        "num_params": model.num_params,
        "num_active_params": model.num_active_params,
        "num_layers": model.num_layers,
        "hidden": model.hidden,
        "num_heads": attention.num_heads if attention else None,
        "num_kv_heads": attention.num_kv_heads if attention else None,
        "vocab": model.vocab,
        "num_experts": experts.num_experts if experts else None,
        "top_k": experts.top_k if experts else None,
        "max_seq_len": model.max_seq_len,
        "source": model.source,
    }


def _billions(number: int) -> str:
    return f"{number / 1e9:.2f} B"


def print_models(found: Sequence[ModelGraph]) -> None:
    """Print one line per model."""
    rows = []
    for d in map(model_document, found):
        experts = f"{d['top_k']} of {d['num_experts']}" if d["num_experts"] else "-"
        rows.append(
            [
                d["name"],
                d["family"],
                _billions(d["num_params"]),
                _billions(d["num_active_params"]),
                str(d["num_layers"]),
                str(d["hidden"]),
                f"{d['num_heads'] or '-'}/{d['num_kv_heads'] or '-'}",
                str(d["vocab"]),
                experts,
            ]
        )
    titles = ["model", "family", "parameters", "active", "layers", "hidden", "heads/kv", "vocab", "experts"]
    print_table("", titles, rows)


def print_model(model: ModelGraph) -> None:
    """Print a model's figures and its blocks, operator by operator."""
    print_table(
        model.name,
        ["figure", "value"],
        ([k, str(v)] for k, v in model_document(model).items() if v is not None),
    )
    out = console()
    for index, block in enumerate(model.blocks):
        out.print()
        rows = [[op.name, type(op).__name__.lower(), f"{op.num_params:,}"] for op in block.operators]
        title = f"block {block.name}: {model.layers.count(index)} layers of {block.num_params:,} parameters"
        print_table(title, ["operator", "kind", "parameters"], rows)
