"""Measured training runs as jobs, clusters, strategies and software stacks.

A row that lacks a value gets the documented default below, and the default is counted; a row that cannot be
turned into a question (no dimensions, degrees that do not multiply) is rejected with the reason.
"""

import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from costmodels.graph import ModelGraph
from costmodels.graph_import.transformer import transformer_graph
from costmodels.job import TrainingJob
from costmodels.models import find_model, model_names
from costmodels.run_table import RunRow, RunTable
from costmodels.strategy import ConfigTable, Recompute, Strategy
from costmodels.training.stack_choice import release_of_run, stack_of_run
from hardware.catalog import find_device
from hardware.cluster import Cluster
from hardware.errors import InputError, PlannerError
from hardware.levels import LinkKind
from hardware.plain_cluster import homogeneous_cluster

__all__ = ["NEEDED_COLUMNS", "Run", "RunGroup", "group_runs", "parse_runs"]

NEEDED_COLUMNS = ("row_id", "source", "model", "gpu", "n_gpus", "tp", "pp", "seq", "gbs")

_LINKS = {
    "v100": (150e9, 12.5e9, "nvlink2", False),
    "a100": (300e9, 25e9, "nvlink3", False),
    "a800": (200e9, 25e9, "nvlink3", False),
    "h100": (450e9, 50e9, "nvlink4", True),
    "h800": (200e9, 50e9, "nvlink4", True),
    "h200": (450e9, 50e9, "nvlink4", True),
    "b200": (900e9, 50e9, "nvlink5", True),
    "b300": (900e9, 100e9, "nvlink5", True),
    "gb200": (900e9, 50e9, "nvlink5", True),
    "gb300": (900e9, 100e9, "nvlink5", True),
    "mi250x": (100e9, 12.5e9, "infinity-fabric", False),
    "gh200": (150e9, 25e9, "nvlink4", False),
}
"""Default one-way bytes/s per device inside and between nodes where a row leaves its links blank
(data sheets of the DGX and HGX nodes; see the node templates)."""

_OVERLAPPING_STACKS = ("megatron-core", "nemo-mlperf", "megascale")
"""Stacks whose published recipes overlap tensor-parallel collectives with their matmuls (user buffers)."""
_RACK_DEVICES = 64
"""Devices that a job of several NVL72 racks uses of each (16 of 18 trays, as published runs place them)."""


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run, ready to be predicted."""

    row_id: str
    source: str
    group: str
    job: TrainingJob
    cluster: Cluster
    strategy: Strategy
    step_s: float | None
    oom: bool | None
    memory_bytes: float | None
    row: dict[str, str]


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs that differ in their strategy only, as one table."""

    source: str
    job: TrainingJob
    cluster: Cluster
    configs: ConfigTable
    index: np.ndarray
    """Position of each row in the list of runs. shape (rows,)"""


def _canonical(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.split("(")[0].lower())


@cache
def _catalogue() -> dict[str, str]:
    return {_canonical(name): name for name in model_names()}


@cache
def _dense_graph(
    arch: str, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int, seq: int
) -> ModelGraph:
    dims = {
        "name": f"{arch}-h{hidden}-L{layers}",
        "hidden": hidden,
        "ffn_hidden": ffn,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "vocab": vocab,
        "max_seq_len": seq,
    }
    if arch == "llama":
        return transformer_graph(**dims, gated=True, bias=False, rms=True, tied=False, rotary=True)
    if arch == "mpt":
        return transformer_graph(**dims, bias=False, norm_bias=False, tied=True)
    if arch == "nemotron":
        return transformer_graph(**dims, bias=False, tied=False, rotary=True)
    return transformer_graph(**dims, tied=True, learned_positions=True, dropout=True)


@cache
def _expert_graph(
    hidden: int, layers: int, heads: int, kv_heads: int, vocab: int, experts: int, top_k: int, expert_ffn: int
) -> ModelGraph:
    return transformer_graph(
        name=f"moe-h{hidden}-L{layers}-E{experts}",
        hidden=hidden,
        ffn_hidden=expert_ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        vocab=vocab,
        num_experts=experts,
        top_k=top_k,
        expert_ffn_hidden=expert_ffn,
        gated=True,
        bias=False,
        rms=True,
        tied=False,
        rotary=True,
    )


def _model(row: RunRow) -> ModelGraph:
    """Return the row's model: from its dimensions, or by name where experts or latent attention need more."""
    name = row.text("model")
    known = _catalogue().get(_canonical(name))
    arch = row.text("arch", "gpt")
    if row.optional("hidden") is None:
        if known is None:
            message = f"no dimensions are given and no catalogue model is called {name!r}"
            raise InputError(message)
        return find_model(known)
    hidden, layers = row.whole("hidden"), row.whole("layers")
    heads = row.whole("heads")
    experts = int(row.optional("n_experts") or 0)
    if experts:
        model = find_model(known) if known else None
        if model is not None and (model.hidden, model.num_layers) == (hidden, layers):
            return model
        return _expert_graph(
            hidden,
            layers,
            heads,
            row.whole("kv_heads", heads),
            row.whole("vocab", 32000),
            experts,
            row.whole("moe_topk", 2),
            row.whole("moe_ffn", row.whole("ffn_hidden", 4 * hidden)),
        )
    gated_ffn = -(-8 * hidden // 3 // 256) * 256
    ffn = row.whole("ffn_hidden", gated_ffn if arch == "llama" else 4 * hidden)
    kv_heads = row.whole("kv_heads", heads)
    return _dense_graph(
        arch, hidden, ffn, layers, heads, kv_heads, row.whole("vocab", 50257), row.whole("seq")
    )


@cache
def _cluster(gpu: str, num_devices: int, per_node: int, intra: float | None, inter: float | None) -> Cluster:
    device = find_device(gpu)
    family = next((k for k in sorted(_LINKS, key=len, reverse=True) if k in gpu.lower()), "a100")
    intra_default, inter_default, technology, reduces = _LINKS[family]
    if family.startswith("gb"):
        per_node = num_devices if num_devices <= 72 else _RACK_DEVICES
    per_node = min(per_node, num_devices)
    return homogeneous_cluster(
        device=device,
        num_nodes=-(-num_devices // per_node),
        devices_per_node=per_node,
        intra_bytes_per_s=intra or intra_default,
        inter_bytes_per_s=inter or inter_default,
        intra_kind=LinkKind.SWITCH,
        intra_technology=technology,
        inter_technology="ib-shared" if inter and inter < inter_default else "ib",
        in_network_reduce=reduces,
        name=f"{gpu} x {num_devices}",
    )


def _recompute(text: str) -> Recompute:
    if text in ("full", "selective-layer"):
        return Recompute.FULL
    return Recompute.SELECTIVE if text.startswith("selective") else Recompute.NONE


def _recomputed_layers(row: RunRow, pp: int) -> int:
    """Return the layers per rank that are recomputed: every second one under ``selective-layer``, else
    all.
    """
    return max(row.whole("layers", 2) // pp // 2, 1) if row.text("recompute") == "selective-layer" else 0


def _micro_batch(row: RunRow, replicas: int, pp: int) -> int:
    """Return the micro-batch; where blank, 1 under a pipeline and otherwise all of a replica's batch up to
    8.
    """
    given = row.optional("mbs")
    if given:
        return int(given)
    share = max(row.whole("gbs") // max(replicas, 1), 1)
    guess = 1 if pp > 1 else max(b for b in range(1, 9) if share % b == 0)
    return row.whole("mbs", guess)


def _strategy(row: RunRow, num_devices: int, stack: str) -> Strategy:
    tp, pp, cp = row.whole("tp"), row.whole("pp"), row.whole("cp", 1)
    dp = row.whole("dp", max(num_devices // (tp * pp * cp), 1))
    if tp * pp * cp * dp != num_devices:
        message = f"tp*pp*cp*dp = {tp * pp * cp * dp} does not equal n_gpus = {num_devices}"
        raise InputError(message)
    zero = row.whole("zero", 0)
    if row.optional("dist_opt") == 1 and zero == 0:
        zero = 1
    shards = re.search(r"zero1=(\d+)", row.text("kernel"))
    flash = row.optional("flash_attn") == 1
    default = "none" if flash else "selective"
    return Strategy(
        tp=tp,
        pp=pp,
        dp=dp,
        cp=cp,
        ep=max(row.whole("ep", 1), 1),
        vpp=max(row.whole("vpp", 1), 1),
        micro_batch=_micro_batch(row, dp, pp),
        sequence_parallel=bool(row.whole("sp", 0)) and tp > 1,
        recompute=_recompute(row.text("recompute", default)),
        recompute_layers=_recomputed_layers(row, pp),
        zero=zero,
        shard_group=int(shards.group(1)) if shards else 0,
        overlap_dp=True,
        overlap_tp=tp > 1 and ("async TP" in row.text("note") or stack.startswith(_OVERLAPPING_STACKS)),
    )


def _precision(text: str) -> str:
    name = text.lower()
    if "nvfp4" in name or "fp4" in name:
        return "nvfp4"
    if name.startswith("mxfp8") or "fp8-mx" in name:
        return "mxfp8"
    return "fp8" if name.startswith("fp8") else name


def _run(row: RunRow) -> Run:
    num_devices = row.whole("n_gpus")
    gpu = row.text("gpu")
    cluster = _cluster(
        gpu,
        num_devices,
        row.whole("gpus_per_node", 8),
        (row.optional("intra_gbps") or 0.0) * 1e9 or None,
        (row.optional("inter_gbps_per_gpu") or 0.0) * 1e9 or None,
    )
    stack = stack_of_run(row)
    strategy = _strategy(row, num_devices, stack)
    job = TrainingJob(
        model=_model(row),
        seq_len=row.whole("seq"),
        global_batch=row.whole("gbs"),
        precision=_precision(row.text("precision", "bf16")),
        stack=stack,
        release=release_of_run(row),
    )
    oom = row.optional("oom")
    memory = row.optional("mem_gb")
    return Run(
        row_id=row.text("row_id"),
        source=row.text("source"),
        group=row.text("group"),
        job=job,
        cluster=cluster,
        strategy=strategy,
        step_s=row.optional("iter_time_s"),
        oom=None if oom is None else bool(oom),
        memory_bytes=None if memory is None else memory * 1e9,
        row=row.values,
    )


def parse_runs(table: RunTable) -> tuple[list[Run], list[tuple[str, str]]]:
    """Return the runs of a table, and for every other row its id and why it was rejected."""
    runs: list[Run] = []
    rejected: list[tuple[str, str]] = []
    for row in table.rows:
        try:
            runs.append(_run(row))
        except (PlannerError, ValueError) as error:
            rejected.append((row.text("row_id"), str(error)))
    return runs, rejected


def group_runs(runs: list[Run]) -> list[RunGroup]:
    """Return the runs as tables of strategies that share source, job and cluster."""
    members: dict[tuple[str, TrainingJob, Cluster], list[int]] = {}
    for i, run in enumerate(runs):
        members.setdefault((run.source, run.job, run.cluster), []).append(i)
    return [
        RunGroup(
            source=source,
            job=job,
            cluster=cluster,
            configs=ConfigTable.from_strategies([runs[i].strategy for i in rows]),
            index=np.array(rows, dtype=np.intp),
        )
        for (source, job, cluster), rows in members.items()
    ]
