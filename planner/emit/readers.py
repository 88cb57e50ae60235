"""Read what runs today back to a strategy: Megatron arguments in a script, DeepSpeed JSON, `vllm serve`."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from costmodels.strategy import Recompute, Strategy
from hardware.errors import InputError, SpecError
from planner.emit.verify.flag_table import FlagTable, flag_table
from planner.emit.verify.megatron_rules import layout_layers

__all__ = ["KINDS", "RunningJob", "read_running_job"]

KINDS = ("megatron-args", "deepspeed", "vllm")
"""Files of running jobs that can be read."""

_SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-ep": "--enable-expert-parallel",
    "-q": "--quantization",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    """What a file says of a job, in this program's words."""

    kind: str
    strategy: Strategy | None = None
    """Of a training job; dp = 0 where the file does not say how many ranks there are."""
    serving: Mapping[str, Any] = field(default_factory=dict)
    """Of a serving job: columns of a `ServingConfig`."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """Keys of a request that the file decides: seq_len, global_batch, precision, model."""
    ignored: tuple[str, ...] = ()
    """Options that change speed or memory and have no counterpart in a strategy."""


def read_running_job(kind: str, path: Path, *, world: int | None = None) -> RunningJob:
    """Return the job that a file describes.

    Parameters
    ----------
    world : ranks of the job, where the file does not say; None leaves dp at 0, all devices that are left.

    Raises
    ------
    InputError, SpecError
        if the file cannot be read or lacks what a strategy needs.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        message = f"{path}: cannot be read: {reason}"
        raise InputError(message) from None
    if kind == "megatron-args":
        return _megatron(text, str(path), world)
    if kind == "deepspeed":
        return _deepspeed(text, str(path), world)
    return _vllm(text, str(path))


def _words(text: str, where: str) -> list[str]:
    """Return the words of a script with its own plain assignments filled in; other variables stay."""
    joined = re.sub(r"\\\n", " ", text)
    joined = re.sub(r"^\s*#.*$", "", joined, flags=re.MULTILINE)
    values = dict(
        re.findall(r"^\s*(?:export\s+)?([A-Za-z_]\w*)=(\"[^\"$]*\"|[\w./:+-]+)\s*$", joined, re.MULTILINE)
    )
    for name, value in values.items():
        joined = re.sub(rf"\$\{{{name}\}}|\${name}\b", value.strip('"'), joined)
    # Parentheses of arrays go, those inside a quoted layout stay.
    arrays = r"^\s*\(|\)\s*$|\w+\+?=\(|\"?\$\{\w+\[@\]\}\"?"
    joined = re.sub(arrays, " ", joined, flags=re.MULTILINE)
    words: list[str] = []
    for line in joined.splitlines():
        try:
            words += shlex.split(line, comments=True)
        except ValueError:
            words += line.split()
    if not any(word.startswith("-") for word in words):
        raise SpecError(where, ["holds no options; a script or a list of arguments is expected"])
    return words


def _options(words: list[str], table: FlagTable) -> dict[str, str]:
    """Return the known options among the words of a script, whatever stands around them."""
    found: dict[str, str] = {}
    for position, word in enumerate(words):
        name, equals, given = word.partition("=")
        name = _SHORT.get(name, name).replace("_", "-") if name.startswith("-") else name
        if name not in table.forms:
            continue
        if table.forms[name] == "switch":
            found[name] = ""
        elif equals:
            found[name] = given
        elif position + 1 < len(words):
            found[name] = words[position + 1]
    return found


class _Reader:
    """Numbers of options; every wrong one is remembered, so that all come at once."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self.options = options
        self.problems: list[str] = []

    def number(self, name: str, default: int | None = 1) -> int:
        """Return the option's integer, or the framework's default; without one, it is a problem."""
        text = self.options.get(name)
        if text is None and default is not None:
            return default
        if text is None or not re.fullmatch(r"\d+", text):
            what = (
                "is missing"
                if text is None
                else f"{text!r} is not an integer (set variables are not followed)"
            )
            self.problems.append(f"{name}: {what}")
            return 1
        return int(text)


def _megatron(text: str, where: str, world: int | None) -> RunningJob:
    words = _words(text, where)
    options = _options(words, flag_table("megatron-lm"))
    read = _Reader(options)
    tp, pp = read.number("--tensor-model-parallel-size"), read.number("--pipeline-model-parallel-size")
    cp, layers = read.number("--context-parallel-size"), read.number("--num-layers", None)
    micro, batch = read.number("--micro-batch-size", None), read.number("--global-batch-size", None)
    seq_len = read.number("--seq-length", None)
    world = world or _world(words)
    per_chunk = read.number("--num-layers-per-virtual-pipeline-stage", 0)
    vpp = read.number("--num-virtual-stages-per-pipeline-rank", 1)
    vpp = max(layers // pp // per_chunk, 1) if per_chunk else vpp
    layout = options.get("--pipeline-model-parallel-layout")
    vpp = max(len(layout_layers(layout)) // pp, 1) if layout else vpp
    recompute, kept = _megatron_recompute(options, read, vpp)
    if world is not None and world % (tp * pp * cp):
        read.problems.append(f"{world} ranks are no multiple of tensor {tp} x pipeline {pp} x context {cp}")
    if read.problems:
        raise SpecError(where, read.problems)
    strategy = Strategy(
        tp=tp,
        pp=pp,
        cp=cp,
        dp=world // (tp * pp * cp) if world else 0,
        ep=read.number("--expert-model-parallel-size"),
        etp=read.number("--expert-tensor-parallel-size", tp if "--num-experts" in options else 1),
        vpp=vpp,
        micro_batch=micro,
        sequence_parallel="--sequence-parallel" in options,
        recompute=recompute,
        recompute_layers=kept,
        zero=_megatron_zero(options),
        overlap_dp="--overlap-grad-reduce" in options,
        overlap_tp="--tp-comm-overlap" in options,
        overlap_pp=vpp > 1 and "--no-overlap-p2p-communication" not in options,
    )
    request: dict[str, Any] = {
        "seq_len": seq_len,
        "global_batch": batch,
        "precision": _megatron_precision(options),
    }
    model = _matching_model(read, layers)
    ignored = ("--pipeline-model-parallel-layout", "--decoder-first-pipeline-num-layers", "--use-torch-fsdp2")
    return RunningJob(
        kind="megatron-args",
        strategy=strategy,
        request=request | ({"model": model} if model else {}),
        ignored=tuple(name for name in ignored if name in options),
    )


def _world(words: list[str]) -> int | None:
    """Return nodes times ranks per node where the launcher's own options say both."""

    def value(*names: str) -> int | None:
        for position, word in enumerate(words):
            name, equals, given = word.partition("=")
            if name.replace("_", "-") in names:
                text = given if equals else "".join(words[position + 1 : position + 2])
                return int(text) if text.isdigit() else None
        return None

    nodes = value("--nnodes") or next((int(w[6:]) for w in words if re.fullmatch(r"NODES=\d+", w)), None)
    ranks = value("--nproc-per-node")
    ranks = ranks or next((int(w[6:]) for w in words if re.fullmatch(r"NPROC=\d+", w)), None)
    return nodes * ranks if nodes and ranks else None


def _megatron_zero(options: Mapping[str, str]) -> int:
    if "--use-megatron-fsdp" in options or "--use-torch-fsdp2" in options:
        strategy = options.get("--data-parallel-sharding-strategy", "optim_grads_params")
        return {"no_shard": 0, "optim": 1, "optim_grads": 2}.get(strategy, 3)
    return 1 if "--use-distributed-optimizer" in options else 0


def _megatron_precision(options: Mapping[str, str]) -> str:
    if "--fp4-format" in options:
        return "nvfp4"
    if "--fp8-format" in options:
        return {"mxfp8": "mxfp8", "blockwise": "fp8-block"}.get(options.get("--fp8-recipe", ""), "fp8")
    return "bf16" if "--bf16" in options else "fp16" if "--fp16" in options else "fp32"


def _megatron_recompute(options: Mapping[str, str], read: _Reader, vpp: int) -> tuple[Recompute, int]:
    granularity = options.get("--recompute-granularity")
    if granularity == "full":
        block = options.get("--recompute-method") == "block"
        return Recompute.FULL, read.number("--recompute-num-layers", 0) * vpp if block else 0
    selective = granularity == "selective" or "--recompute-activations" in options
    return (Recompute.SELECTIVE if selective else Recompute.NONE), 0


def _matching_model(read: _Reader, layers: int) -> str | None:
    """Return the one catalogue model with these dimensions; None where none or several have them."""
    from costmodels.models import find_model, model_names
    from hardware.errors import OutOfDomainError
    from planner.emit.model_shape import model_shape

    wanted = (layers, read.number("--hidden-size", 0), read.number("--num-attention-heads", 0))
    feed = read.number("--ffn-hidden-size", 4 * wanted[1])
    experts = read.number("--num-experts", 0)
    found = []
    for name in model_names():
        model = find_model(name)
        if (model.num_layers, model.hidden) != wanted[:2]:
            continue
        try:
            shape = model_shape(model)
        except OutOfDomainError:
            continue
        if (shape.num_heads, shape.ffn_hidden, shape.num_experts) == (wanted[2], feed, experts):
            found.append(name)
    return found[0] if len(found) == 1 else None


def _deepspeed(text: str, where: str, world: int | None) -> RunningJob:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise SpecError(where, [f"is no JSON: {error}"]) from None
    if not isinstance(config, dict):
        raise SpecError(where, ["a DeepSpeed configuration is one JSON object"])
    zero = config.get("zero_optimization") or {}
    tp = int((config.get("tensor_parallel") or {}).get("autotp_size", 1))
    cp = int(config.get("sequence_parallel_size", 1))
    counts = {k: config.get(k) for k in ("train_micro_batch_size_per_gpu", "train_batch_size")}
    missing = [f"{k}: is missing or no integer" for k, v in counts.items() if not isinstance(v, int)]
    rounds = config.get("gradient_accumulation_steps")
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        missing.append(f"zero_optimization.stage: {stage!r} is none of 0, 1, 2, 3")
    if missing:
        raise SpecError(where, missing)
    micro, batch = (int(v) for v in counts.values() if v is not None)
    dp = batch // (micro * rounds) if isinstance(rounds, int) else (world or 0) // (tp * cp)
    strategy = Strategy(
        tp=tp,
        cp=cp,
        dp=dp,
        micro_batch=micro,
        zero=stage,
        ep=int((config.get("expert_parallel") or {}).get("autoep_size", 1)),
        overlap_dp=bool(zero.get("overlap_comm", False)),
        recompute=Recompute.FULL if config.get("activation_checkpointing") else Recompute.NONE,
    )
    on = [name for name in ("bf16", "fp16") if (config.get(name) or {}).get("enabled")]
    ignored = tuple(k for k in ("offload_optimizer", "offload_param", "zero_quantized_weights") if k in zero)
    request = {"global_batch": batch, "precision": on[0] if on else "fp32"}
    return RunningJob(kind="deepspeed", strategy=strategy, request=request, ignored=ignored)


def _vllm(text: str, where: str) -> RunningJob:
    options = _options(_words(text, where), flag_table("vllm"))
    read = _Reader(options)
    tp, dp = read.number("--tensor-parallel-size"), read.number("--data-parallel-size")
    serving: dict[str, Any] = {
        "tp": tp,
        "pp": read.number("--pipeline-parallel-size"),
        "dp": dp,
        "ep": tp * dp if "--enable-expert-parallel" in options else 1,
        "weights": "fp8" if options.get("--quantization") == "fp8" else "bf16",
        "kv": "fp8" if options.get("--kv-cache-dtype", "auto").startswith("fp8") else "bf16",
        "chunked": "--disable-chunked-prefill" not in options,
    }
    for name, flag in (("max_batch", "--max-num-seqs"), ("token_budget", "--max-num-batched-tokens")):
        if flag in options:
            serving[name] = read.number(flag)
    if read.problems:
        raise SpecError(where, read.problems)
    model = re.search(r"vllm serve\s+[\"']?([\w./-]+)|^MODEL=\$\{MODEL:-([\w./-]+)\}", text, re.MULTILINE)
    request = {"model": model.group(1) or model.group(2)} if model else {}
    ignored = tuple(f for f in ("--kv-transfer-config", "--speculative-config") if f in options)
    return RunningJob(kind="vllm", serving=serving, request=request, ignored=ignored)
