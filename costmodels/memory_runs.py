"""Measured memory of Megatron runs as jobs, strategies and stacks (allocator figures of the last rank)."""

from dataclasses import dataclass, replace
from functools import cache

from costmodels.graph import ModelGraph
from costmodels.graph_import.parts import LatentAttention
from costmodels.graph_import.transformer import transformer_graph
from costmodels.job import TrainingJob
from costmodels.run_table import RunRow, RunTable
from costmodels.stacks import Stack, find_stack
from costmodels.strategy import Recompute, Strategy
from hardware.errors import InputError, PlannerError

__all__ = ["NEEDED_COLUMNS", "MemoryRun", "parse_memory_runs"]

NEEDED_COLUMNS = ("path", "layers", "hidden", "heads", "seq", "tp", "pp", "mbs")

_VOCAB = 50257
"""GPT-2 vocabulary, the tokenizer that Megatron's own tests use where none is named."""
_VOCAB_MULTIPLE = 128


@dataclass(frozen=True, slots=True)
class MemoryRun:
    """One run with its allocator figures."""

    path: str
    platform: str
    job: TrainingJob
    strategy: Strategy
    stack: Stack
    allocated_bytes: float | None
    peak_bytes: float | None
    row: dict[str, str]


def _true(row: RunRow, column: str) -> bool:
    return row.text(column).lower() in ("true", "1", "yes")


@cache
def _graph(**dims: object) -> ModelGraph:
    return transformer_graph(**dims)


def _model(row: RunRow) -> ModelGraph:
    hidden, tp = row.whole("hidden"), row.whole("tp")
    multiple = _VOCAB_MULTIPLE * tp
    vocab = -(-row.whole("vocab", _VOCAB) // multiple) * multiple
    experts = int(row.optional("num_experts") or 0)
    gated = _true(row, "swiglu")
    ffn = row.whole("ffn", 4 * hidden)
    dims: dict[str, object] = {
        "name": f"megatron-h{hidden}-L{row.whole('layers')}",
        "hidden": hidden,
        "ffn_hidden": ffn,
        "num_layers": row.whole("layers"),
        "num_heads": row.whole("heads"),
        "num_kv_heads": row.whole("kv_groups", row.whole("heads")),
        "vocab": vocab,
        "max_seq_len": row.whole("seq"),
        "gated": gated,
        "tied": not _true(row, "untie"),
        "learned_positions": True,
        "dropout": True,
    }
    if experts:
        dims |= {
            "num_experts": experts,
            "top_k": row.whole("topk", 2),
            "expert_ffn_hidden": row.whole("moe_ffn", ffn),
        }
    if _true(row, "mla"):
        dims["mla"] = LatentAttention(
            kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
        )
    return _graph(**dims)


def _virtual_stages(row: RunRow, layers: int, pp: int) -> int:
    per_chunk, stages = row.optional("vp_layers"), row.optional("vp_stages")
    if stages:
        return int(stages)
    return max(int(layers / pp / per_chunk), 1) if per_chunk else 1


def _strategy(row: RunRow) -> Strategy:
    tp, pp, cp = row.whole("tp"), row.whole("pp"), row.whole("cp", 1)
    world = row.whole("nodes", 1) * row.whole("gpus_per_node", 8)
    world = max(world, tp * pp * cp)
    if world % (tp * pp * cp):
        message = f"tp*pp*cp = {tp * pp * cp} does not divide the {world} devices"
        raise InputError(message)
    recompute = {"full": Recompute.FULL, "selective": Recompute.SELECTIVE}
    return Strategy(
        tp=tp,
        pp=pp,
        cp=cp,
        dp=world // (tp * pp * cp),
        ep=row.whole("ep", 1),
        etp=row.whole("etp", tp),
        vpp=_virtual_stages(row, row.whole("layers"), pp),
        micro_batch=row.whole("mbs"),
        sequence_parallel=_true(row, "sp") and tp > 1,
        recompute=recompute.get(row.text("recompute"), Recompute.NONE),
        zero=3 if _true(row, "fsdp") else 1 if _true(row, "dist_opt") else 0,
    )


def _flash(row: RunRow) -> bool:
    """Whether attention keeps no scores; where blank, local layers and old LTS containers kept them."""
    attention = row.text("attn")
    if attention:
        return attention not in ("unfused", "local")
    if row.text("impl") == "local":
        return False
    old_container = "lts" in row.text("path") and "dracooci" in row.text("path")
    return not old_container


def _run(row: RunRow) -> MemoryRun:
    strategy = _strategy(row)
    fused_loss = "cross_entropy_loss_fusion" in row.text("path")
    stack = replace(find_stack("megatron-core"), flash=_flash(row), fused_loss=fused_loss)
    job = TrainingJob(
        model=_model(row),
        seq_len=row.whole("seq"),
        global_batch=max(
            row.whole("gbs", strategy.micro_batch * strategy.dp), strategy.micro_batch * strategy.dp
        ),
        precision="fp8" if row.text("fp8") else "bf16",
        stack="megatron-core",
    )
    return MemoryRun(
        path=row.text("path"),
        platform=row.text("platform"),
        job=job,
        strategy=strategy,
        stack=stack,
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
