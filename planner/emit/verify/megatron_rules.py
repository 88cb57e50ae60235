"""What Megatron's own checks let through or find late: products, divisions, stages, what needs what."""

import re
from collections.abc import Callable, Mapping

__all__ = ["layout_layers", "megatron_problems"]

Number = Callable[..., int]


def megatron_problems(values: Mapping[str, str], world: int) -> list[str]:
    """Return every rule that the arguments break on `world` ranks."""

    def number(name: str, default: int = 1) -> int:
        text = values.get(name, "")
        return int(text) if text.lstrip("-").isdigit() else default

    tp = number("--tensor-model-parallel-size")
    pp = number("--pipeline-model-parallel-size")
    cp = number("--context-parallel-size")
    problems = []
    if world % (tp * pp * cp):
        problems.append(f"tensor {tp} x pipeline {pp} x context {cp} does not divide the world of {world}")
        return problems
    dp = world // (tp * pp * cp)
    micro, batch = number("--micro-batch-size"), number("--global-batch-size")
    if batch % (micro * dp):
        problems.append(f"--global-batch-size {batch} is no multiple of micro-batch {micro} x replicas {dp}")
    problems += _shape_problems(values, number, tp, cp)
    problems += _expert_problems(values, number, world, pp)
    problems += _order_problems(values, number, tp, cp, pp)
    problems += _stage_problems(values, number, pp, batch // (micro * dp))
    problems += _needs(values, tp)
    return problems


def _shape_problems(values: Mapping[str, str], number: Number, tp: int, cp: int) -> list[str]:
    problems = [
        f"{name} {values[name]} is no multiple of the tensor degree {tp}"
        for name in ("--num-attention-heads", "--ffn-hidden-size")
        if name in values and number(name) % tp
    ]
    groups = number("--num-query-groups", 0) if "--group-query-attention" in values else 0
    if groups and groups % tp and tp % groups:
        problems.append(f"--num-query-groups {groups} neither divides nor is a multiple of tensor {tp}")
    sequence = number("--seq-length", 0)
    if cp > 1 and sequence % (2 * cp):
        problems.append(f"--seq-length {sequence} is no multiple of 2 x context degree {cp}")
    if "--sequence-parallel" in values and sequence // cp % tp:
        problems.append(f"--seq-length {sequence} / context {cp} is no multiple of tensor degree {tp}")
    if sequence > number("--max-position-embeddings", sequence):
        problems.append(f"--seq-length {sequence} exceeds --max-position-embeddings")
    return problems


def _expert_problems(values: Mapping[str, str], number: Number, world: int, pp: int) -> list[str]:
    ep, experts = number("--expert-model-parallel-size"), number("--num-experts", 0)
    etp = number("--expert-tensor-parallel-size", number("--tensor-model-parallel-size"))
    if not experts:
        return [f"--expert-model-parallel-size {ep} without --num-experts"] if ep > 1 else []
    problems = []
    if experts % ep:
        problems.append(f"--num-experts {experts} is no multiple of expert degree {ep}")
    if world % (ep * etp * pp):
        problems.append(
            f"expert {ep} x expert tensor {etp} x pipeline {pp} does not divide the world of {world}"
        )
    if number("--moe-router-topk", 1) > experts:
        problems.append(f"--moe-router-topk {values['--moe-router-topk']} exceeds --num-experts {experts}")
    return problems


def _order_problems(values: Mapping[str, str], number: Number, tp: int, cp: int, pp: int) -> list[str]:
    if "--use-tp-pp-dp-mapping" not in values or pp == 1:
        return []
    routed = number("--expert-tensor-parallel-size", tp) * number("--expert-model-parallel-size")
    if routed == tp * cp:
        return []
    return [
        f"--use-tp-pp-dp-mapping needs expert x expert tensor = tensor x context, not {routed} and {tp * cp}"
    ]


def layout_layers(layout: str) -> list[int]:
    """Return the layers (`t`) of every chunk of a layout such as ``Et*7|(t*9|)*2t*7L``."""
    text = layout.replace(",", "")
    group = re.compile(r"\(([^()]*)\)\*(\d+)")
    while match := group.search(text):
        text = text[: match.start()] + match.group(1) * int(match.group(2)) + text[match.end() :]
    text = re.sub(r"([A-Za-z])\*(\d+)", lambda m: m.group(1) * int(m.group(2)), text)
    return [chunk.count("t") for chunk in text.split("|")]


def _layout_problems(layout: str, layers: int, pp: int, micro_batches: int) -> list[str]:
    chunks = layout_layers(layout)
    problems = []
    if sum(chunks) != layers:
        problems.append(f"layout has {sum(chunks)} layers, --num-layers is {layers}")
    if len(chunks) % pp:
        problems.append(f"layout has {len(chunks)} chunks, no multiple of pipeline degree {pp}")
    if not (layout.startswith("E") and layout.endswith("L")):
        problems.append("layout must begin with E and end with L")
    return problems + _interleaving(len(chunks) // pp, pp, micro_batches)


def _stage_problems(values: Mapping[str, str], number: Number, pp: int, micro_batches: int) -> list[str]:
    layers = number("--num-layers", 0)
    layout = values.get("--pipeline-model-parallel-layout")
    if layout is not None:
        return _layout_problems(layout, layers, pp, micro_batches)
    first = number("--decoder-first-pipeline-num-layers", 0)
    last = number("--decoder-last-pipeline-num-layers", 0)
    middle = pp - (first > 0) - (last > 0)
    rest = layers - first - last
    if (middle and rest % middle) or (not middle and rest):
        return [f"{rest} layers do not divide over {middle} middle stages"]
    per_chunk = number("--num-layers-per-virtual-pipeline-stage", 0)
    virtual = number("--num-virtual-stages-per-pipeline-rank", 0)
    if per_chunk:
        if layers // pp % per_chunk:
            return [f"{layers // pp} layers per rank are no multiple of {per_chunk} per chunk"]
        virtual = layers // pp // per_chunk
    return _interleaving(virtual, pp, micro_batches)


def _interleaving(virtual: int, pp: int, micro_batches: int) -> list[str]:
    if virtual > 1 and pp < 2:
        return [f"{virtual} chunks per rank without a pipeline"]
    if virtual > 1 and micro_batches % pp:
        return [f"{micro_batches} micro-batches are no multiple of pipeline degree {pp} (interleaving)"]
    return []


def _needs(values: Mapping[str, str], tp: int) -> list[str]:
    rules = (
        ("--overlap-param-gather", "--use-distributed-optimizer"),
        ("--overlap-param-gather", "--overlap-grad-reduce"),
        ("--tp-comm-overlap", "--sequence-parallel"),
        ("--recompute-method", "--recompute-granularity"),
        ("--recompute-num-layers", "--recompute-method"),
        ("--fp8-recipe", "--fp8-format"),
        ("--fp4-recipe", "--fp4-format"),
        ("--num-query-groups", "--group-query-attention"),
        ("--outer-dp-sharding-strategy", "--use-megatron-fsdp"),
    )
    problems = [f"{name} needs {other}" for name, other in rules if name in values and other not in values]
    if values.get("--recompute-granularity") == "full" and "--recompute-method" not in values:
        problems.append("--recompute-granularity full needs --recompute-method")
    if "--use-megatron-fsdp" in values and values.get("--ckpt-format") != "fsdp_dtensor":
        problems.append("--use-megatron-fsdp needs --ckpt-format fsdp_dtensor")
    if "--sequence-parallel" in values and tp == 1:
        problems.append("--sequence-parallel needs a tensor degree above 1")
    apart = {"--num-layers-per-virtual-pipeline-stage", "--no-overlap-p2p-communication"} <= set(values)
    if apart and values.get("--pipeline-model-parallel-size") == "2":
        problems.append("--no-overlap-p2p-communication needs more than two interleaved stages")
    if "--bf16" in values and "--fp16" in values:
        problems.append("--bf16 and --fp16 exclude each other")
    return problems
