"""Measured memory of Megatron runs as jobs, strategies and stacks (allocator figures of the last rank)."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from costmodels.graph import ModelGraph
from costmodels.graph_import.parts import LatentAttention
from costmodels.graph_import.transformer import transformer_graph
from costmodels.job import TrainingJob
from costmodels.memory.coefficients import golden_coefficients
from costmodels.memory.peak import StageDetails
from costmodels.memory.run_names import (
    Switches,
    is_t5,
    known_dimensions,
    refuse_unknown_parts,
    switches_of,
    with_named_degrees,
)
from costmodels.memory.run_t5 import DECODER_TOKENS, ENCODER_TOKENS, t5_stacks
from costmodels.run_table import RunRow, RunTable
from costmodels.stacks import Stack, find_stack
from costmodels.strategy import Recompute, Strategy
from hardware.errors import InputError, PlannerError

__all__ = ["NEEDED_COLUMNS", "MemoryRun", "parse_memory_runs"]

NEEDED_COLUMNS = ("path", "layers", "hidden", "heads", "seq", "tp", "pp", "mbs")

_VOCAB = 50257
"""GPT-2 vocabulary, the tokenizer that Megatron's own tests use where none is named."""
_VOCAB_MULTIPLE = 128
_RELEASE_DEVICES = 64
"""Of a release test that is silent about its nodes (assumed)."""
_MIB = 2**20
_GROUPED_STREAMS = 4
"""Workspaces of Transformer Engine's grouped matmuls, one per stream."""


@dataclass(frozen=True, slots=True)
class MemoryRun:
    """One run with its allocator figures."""

    path: str
    platform: str
    job: TrainingJob
    encoder: TrainingJob | None
    """Of an encoder-decoder, whose `job` is the decoder."""
    strategy: Strategy
    stack: Stack
    details: StageDetails
    workspace_bytes: float
    allocated_bytes: float | None
    peak_bytes: float | None
    row: dict[str, str]

    @property
    def family(self) -> str:
        """Folder of the test: gpt, moe, bert ...; empty where the path has none."""
        parts = self.path.split("/")
        return parts[-3] if len(parts) > 2 else ""


def _true(row: RunRow, column: str) -> bool:
    return row.text(column).lower() in ("true", "1", "yes")


@cache
def _graph(**dims: object) -> ModelGraph:
    return transformer_graph(**dims)


def _layers(row: RunRow) -> int:
    return row.whole("layers", known_dimensions(row.text("path")).get("layers"))


def _ffn(row: RunRow, hidden: int, gated: bool) -> int:
    """Return the feed-forward width; blank is Megatron's default (gated: 8/3 h in multiples of 64)."""
    given = row.optional("ffn")
    if given is not None:
        return int(given)
    return hidden * 8 // 3 // 64 * 64 if gated else 4 * hidden


def _vocabulary(row: RunRow, tp: int, known: dict[str, Any]) -> int:
    multiple = _VOCAB_MULTIPLE * tp
    return -(-row.whole("vocab", known.get("vocab", _VOCAB)) // multiple) * multiple


def _expert_dimensions(row: RunRow, ffn: int, path: str) -> dict[str, Any]:
    experts = int(row.optional("num_experts") or 0)
    if not experts:
        return {}
    deepseek = "deepseek" in path
    return {
        "num_experts": experts,
        "top_k": row.whole("topk", 2),
        "expert_ffn_hidden": row.whole("moe_ffn", ffn),
        "num_shared_experts": 1 if deepseek else 0,
        "first_dense_layers": 3 if "deepseekv3" in path else 0,
    }


def _model(row: RunRow, switches: Switches) -> ModelGraph:
    path, hidden = row.text("path"), row.whole("hidden")
    known = known_dimensions(path)
    gated = _true(row, "swiglu") or bool(known.get("gated")) or "swiglu" in path
    ffn = _ffn(row, hidden, gated)
    bert = "/bert" in path
    positions = not (switches.rotary or _true(row, "mla"))
    dims: dict[str, Any] = {
        "name": f"megatron-h{hidden}-L{_layers(row)}",
        "hidden": hidden,
        "ffn_hidden": ffn,
        "num_layers": _layers(row),
        "num_heads": row.whole("heads"),
        "num_kv_heads": row.whole("kv_groups", row.whole("heads")),
        "vocab": _vocabulary(row, row.whole("tp"), known),
        "max_seq_len": row.whole("seq", known.get("seq")),
        "gated": gated,
        "bias": switches.bias and not known,
        "tied": not _true(row, "untie") and known.get("tied", True),
        "learned_positions": positions and (bert or not known),
        "dropout": bert or (switches.dropout and not known),
        "causal": not bert,
        "qk_norm": "head" if switches.qk_norm else None,
        **_expert_dimensions(row, ffn, path),
    }
    if bert:
        dims["bias"] = True
    if _true(row, "mla"):
        dims["mla"] = _latent("deepseekv3" in path)
    return _graph(**dims)


def _latent(large: bool) -> LatentAttention:
    """Return Megatron's default ranks of latent attention; DeepSeek-V3's (arXiv 2412.19437) when `large`."""
    return LatentAttention(
        kv_lora_rank=512,
        q_lora_rank=1536 if large else None,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    )


def _virtual_stages(row: RunRow, layers: int, pp: int) -> int:
    per_chunk, stages = row.optional("vp_layers"), row.optional("vp_stages")
    if stages:
        return int(stages)
    return max(int(layers / pp / per_chunk), 1) if per_chunk else 1


def _num_devices(row: RunRow, degrees: int) -> int:
    """Return the devices of a run: as stated; for a release test that is silent the documented default."""
    nodes = row.optional("nodes")
    if nodes is None and "release" in row.text("path"):
        world = _RELEASE_DEVICES
    else:
        world = row.whole("nodes", 1) * row.whole("gpus_per_node", 8)
    ep, etp = row.whole("ep", 1), row.whole("etp", row.whole("tp"))
    tp, pp = row.whole("tp"), row.whole("pp")
    world = max(world, degrees, ep * etp * pp)
    batch = row.optional("gbs")
    replicas = world // degrees
    if batch and nodes is None:
        replicas = min(replicas, max(int(batch) // row.whole("mbs"), 1))
    if batch and replicas * row.whole("mbs") > batch:
        replicas = max(int(batch) // row.whole("mbs"), 1)
    if tp * pp * row.whole("cp", 1) != degrees or world % degrees:
        message = f"tp*pp*cp = {degrees} does not divide the {world} devices"
        raise InputError(message)
    return replicas * degrees


def _strategy(row: RunRow, switches: Switches) -> Strategy:
    tp, pp, cp = row.whole("tp"), row.whole("pp"), row.whole("cp", 1)
    replicas = _num_devices(row, tp * pp * cp) // (tp * pp * cp)
    recompute = {"full": Recompute.FULL, "selective": Recompute.SELECTIVE}
    instances = switches.optimizer_instances
    return Strategy(
        tp=tp,
        pp=pp,
        cp=cp,
        dp=replicas,
        ep=row.whole("ep", 1),
        etp=row.whole("etp", tp),
        vpp=_virtual_stages(row, _layers(row), pp),
        micro_batch=row.whole("mbs"),
        sequence_parallel=_true(row, "sp") and tp > 1,
        recompute=recompute.get(switches.recompute, Recompute.NONE),
        zero=3 if _true(row, "fsdp") else 1 if _true(row, "dist_opt") else 0,
        shard_group=max(replicas * cp // instances, 1) if instances > 1 else 0,
    )


def _details(row: RunRow, strategy: Strategy, switches: Switches) -> StageDetails:
    layers, pp = _layers(row), strategy.pp
    ends = 2 if switches.ends_are_layers else 0
    return StageDetails(
        layers=(layers + ends) / pp if ends else None,
        missing_layers=float(switches.uneven or switches.ends_are_layers) - switches.predicted_ahead,
        extra_heads=switches.predicted_ahead,
        micro_batch_group=pp + 1 if switches.long_groups else None,
        deferred_logits=switches.deferred_logits,
    )


def _workspace_bytes(row: RunRow, switches: Switches) -> float:
    """Return the constant buffers of a run.

    PyTorch gives cuBLAS 8 MiB, from Hopper on and in deterministic mode 32 MiB; Transformer Engine keeps
    4 MiB of its own, from Hopper on 32 MiB, and as much again per stream of a grouped matmul.
    """
    new = not row.text("platform").endswith("a100")
    fixed = _true(row, "deterministic") or "/bert" in row.text("path")
    c = golden_coefficients()
    engine = (32.0 if new else 4.0) * _MIB
    own = engine if row.text("impl") != "local" else c.local_bytes
    return (
        c.base_bytes
        + (32.0 if new or fixed else 8.0) * _MIB
        + own
        + (_GROUPED_STREAMS * engine if switches.grouped_experts else 0.0)
        + (c.deterministic_bytes if fixed else 0.0)
        + (c.pipeline_bytes if row.whole("pp") > 1 else 0.0)
    )


def _stack(switches: Switches) -> Stack:
    return replace(
        find_stack("megatron-core"),
        flash=switches.flash,
        logit_bytes=switches.logit_bytes,
    )


def _t5_jobs(row: RunRow, switches: Switches, job: TrainingJob) -> tuple[TrainingJob, TrainingJob]:
    hidden = row.whole("hidden")
    if row.whole("pp") > 1:
        message = "pp: the split of an encoder-decoder over stages is not in the row"
        raise InputError(message)
    encoder, decoder = t5_stacks(
        hidden=hidden,
        ffn=_ffn(row, hidden, gated=False),
        layers=_layers(row),
        heads=row.whole("heads"),
        vocab=_vocabulary(row, row.whole("tp"), known_dimensions(row.text("path"))),
        flash=switches.flash,
    )
    first = replace(job, model=encoder, seq_len=ENCODER_TOKENS)
    return first, replace(job, model=decoder, seq_len=DECODER_TOKENS)


def _run(row: RunRow) -> MemoryRun:
    refuse_unknown_parts(row.text("path"))
    row = with_named_degrees(row)
    switches = switches_of(row)
    strategy = _strategy(row, switches)
    job = TrainingJob(
        model=_model(row, switches),
        seq_len=row.whole("seq", known_dimensions(row.text("path")).get("seq")),
        global_batch=max(
            row.whole("gbs", strategy.micro_batch * strategy.dp), strategy.micro_batch * strategy.dp
        ),
        precision="fp8" if row.text("fp8") else "bf16",
        stack="megatron-core",
    )
    encoder = None
    if is_t5(row.text("path")):
        encoder, job = _t5_jobs(row, switches, job)
    return MemoryRun(
        path=row.text("path"),
        platform=row.text("platform"),
        job=job,
        encoder=encoder,
        strategy=strategy,
        stack=_stack(switches),
        details=_details(row, strategy, switches),
        workspace_bytes=_workspace_bytes(row, switches),
        allocated_bytes=row.optional("mem_alloc_bytes"),
        peak_bytes=row.optional("mem_max_alloc_bytes"),
        row=row.values,
    )


def parse_memory_runs(table: RunTable) -> tuple[list[MemoryRun], list[tuple[str, str]]]:
    """Return the runs of a table, and for every other row its path and why it was rejected."""
    runs: list[MemoryRun] = []
    rejected: list[tuple[str, str]] = []
    for row in table.rows:
        try:
            runs.append(_run(row))
        except (PlannerError, ValueError) as error:
            rejected.append((row.text("path"), str(error)))
    return runs, rejected
