"""Arithmetic of emitted fleets: what divides what, budgets, formats, and that routes name pools."""

import json
from typing import Any

import yaml

from costmodels.models import find_model
from planner.emit.model_shape import ModelShape, model_shape
from planner.emit.verify.emitted import Emitted
from planner.emit.verify.engine_lines import engine_lines, engine_of
from planner.emit.verify.flag_table import flag_table, read_flags
from planner.emit.verify.verdict import Verdict

__all__ = ["serving_verdicts"]


def serving_verdicts(emitted: Emitted) -> list[Verdict]:
    """Return what our tables and arithmetic say of a fleet."""
    shape = model_shape(find_model(str(emitted.plan.request["model"])))
    lines = {line.shown: list(line.words) for line in engine_lines(emitted)}
    table = flag_table(_table_name(emitted))
    spelling, rules = [], []
    for name, words in lines.items():
        values, problems = read_flags(words, table)
        spelling += [f"{name}: {p}" for p in problems]
        rules += [f"{name}: {p}" for p in _rules(emitted, values, shape)]
    if emitted.target == "tensorrt-llm":
        rules += _option_file_rules(emitted, shape)
    rules += _count_problems(emitted) + _router_problems(emitted)
    files = tuple(sorted(lines))
    return [
        Verdict.of(f"meshwright flag table {table.name}", emitted.version, files, spelling),
        Verdict.of("meshwright arithmetic", emitted.version, files, rules),
    ]


def _table_name(emitted: Emitted) -> str:
    return (
        "sglang"
        if engine_of(emitted) == "sglang"
        else "vllm"
        if emitted.target == "llm-d"
        else emitted.target
    )


def _rules(emitted: Emitted, values: dict[str, str], shape: ModelShape) -> list[str]:
    def number(*names: str, default: int = 0) -> int:
        texts = [values[n] for n in names if n in values]
        return int(texts[0]) if texts and texts[0].lstrip("-").isdigit() else default

    tp = number("--tensor-parallel-size", "--tp-size", default=1)
    attention = tp // max(number("--attn-dp-size", default=1), 1)
    problems = _head_problems(shape, attention)
    if shape.ffn_hidden and not shape.num_experts and shape.ffn_hidden % tp:
        problems.append(f"tensor degree {tp} does not divide {shape.ffn_hidden} features")
    if number("--attn-dp-size", default=1) > 1 and tp % number("--attn-dp-size"):
        problems.append(f"--attn-dp-size does not divide --tp-size {tp}")
    pp = number("--pipeline-parallel-size", "--pp-size", default=1)
    if pp > shape.num_layers:
        problems.append(f"{pp} stages for {shape.num_layers} layers")
    ep = number("--ep-size", default=1)
    if ("--enable-expert-parallel" in values or ep > 1) and not shape.num_experts:
        problems.append(f"expert parallelism for {shape.name}, which has no experts")
    elif shape.num_experts and shape.num_experts % ep:
        problems.append(f"--ep-size {ep} does not divide {shape.num_experts} experts")
    length = number("--max-model-len", "--context-length")
    if shape.max_seq_len and length > shape.max_seq_len:
        problems.append(f"length {length} exceeds the model's {shape.max_seq_len} tokens")
    budget = number("--max-num-batched-tokens")
    if budget and "--disable-chunked-prefill" in values and length > budget:
        problems.append(f"without chunked prefill the budget {budget} must hold {length} tokens")
    if budget and number("--max-num-seqs") > budget:
        problems.append(f"--max-num-seqs {number('--max-num-seqs')} exceeds the budget of {budget} tokens")
    return problems + _transfer_problems(values)


def _head_problems(shape: ModelShape, degree: int) -> list[str]:
    if shape.num_heads % degree:
        return [f"tensor degree {degree} does not divide {shape.num_heads} heads"]
    heads = shape.num_kv_heads
    if shape.latent is None and heads % degree and degree % heads:
        return [f"tensor degree {degree} neither divides nor is a multiple of {heads} key-value heads"]
    return []


def _transfer_problems(values: dict[str, str]) -> list[str]:
    if "--kv-transfer-config" not in values:
        return []
    try:
        config = json.loads(values["--kv-transfer-config"])
    except ValueError:
        return []  # the flag table has said so
    known = {"kv_connector", "kv_role", "kv_buffer_device", "kv_connector_extra_config", "engine_id"}
    problems = [f"--kv-transfer-config: unknown key {key}" for key in sorted(set(config) - known)]
    if config.get("kv_role") not in ("kv_both", "kv_producer", "kv_consumer"):
        problems.append(f"--kv-transfer-config: kv_role {config.get('kv_role')!r} is not accepted")
    return problems


def _option_file_rules(emitted: Emitted, shape: ModelShape) -> list[str]:
    problems = []
    for pool in emitted.manifest.get("facts", {}).get("pools", {}):
        options: dict[str, Any] = yaml.safe_load(emitted.files.get(f"{pool}.yaml", "")) or {}
        stage = int(options.get("tensor_parallel_size", 1))
        found = [] if options.get("enable_attention_dp") else _head_problems(shape, stage)
        experts = options.get("moe_expert_parallel_size", 1) * options.get("moe_tensor_parallel_size", stage)
        if experts != stage:
            found.append(f"expert degrees multiply to {experts}, the stage has {stage} devices")
        problems += [f"{pool}.yaml: {p}" for p in found]
    return problems


def _count_problems(emitted: Emitted) -> list[str]:
    planned = sum(entry.count for entry in emitted.best.mix)
    if "instances.tsv" not in emitted.files or emitted.scheduler == "kubernetes":
        return []
    found = len(emitted.files["instances.tsv"].splitlines()) - 1
    return [] if found == planned else [f"instances.tsv has {found} instances, the plan {planned}"]


def _router_problems(emitted: Emitted) -> list[str]:
    if "router.json" not in emitted.files:
        return []
    pools = {line.split("\t")[0] for line in emitted.files.get("instances.tsv", "").splitlines()[1:]}
    problems = []
    for number, route in enumerate(json.loads(emitted.files["router.json"])["routes"]):
        strange = sorted(set(route["weights"]) - pools)
        if strange:
            problems.append(f"router.json: routes.{number}: no pool is called {strange[0]}")
        if abs(sum(route["weights"].values()) - 1.0) > 1e-6:
            problems.append(
                f"router.json: routes.{number}: weights sum to {sum(route['weights'].values()):g}"
            )
    return problems
