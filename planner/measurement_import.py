"""What people have measured already: collective benchmarks as samples, training logs as backtest rows.

Formats are those of nccl-tests and rccl-tests, of the OSU micro-benchmarks 5 to 7, and of the step lines that
Megatron-LM and DeepSpeed print.
"""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from costmodels.samples import Sample, lines
from hardware.errors import InputError, SpecError
from hardware.importers.nccl_tests import import_nccl_tests

__all__ = ["KINDS", "TrainingLog", "imported_text", "read_training_log"]

_NCCL_OPS = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "broadcast": "broadcast",
    "sendrecv": "p2p",
}
_OSU_OPS = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "bcast": "broadcast",
}
_OSU_TITLE = re.compile(r"#\s*OSU MPI.*?\b(\w+) Latency Test", re.IGNORECASE)
_WARM_UP_STEPS = 2
"""First steps of a log that compile, allocate and fill caches."""


def nccl_samples(paths: Sequence[Path], *, device: str, dtype: str, ranks: int | None) -> str:
    """Return nccl-tests or rccl-tests outputs as a samples file."""
    found = []
    for run in import_nccl_tests(list(paths)):
        kind = _NCCL_OPS.get(run.op)
        if kind is None:
            continue
        degree = 2 if kind == "p2p" else run.num_devices
        found += [
            _collective(kind, s.message_bytes, s.time_s, degree, run.num_devices, device, dtype, "nccl-tests")
            for s in run.samples
        ]
    if not found:
        raise SpecError(", ".join(map(str, paths)), [f"no run of {', '.join(_NCCL_OPS)}"])
    return lines(found)


def _collective(
    kind: str, size: float, seconds: float, degree: int, ranks: int, device: str, dtype: str, backend: str
) -> Sample:
    shape = (("message_bytes", float(size)), ("stride", 1.0), ("degree", float(degree)))
    return Sample(
        kind=kind, shape=shape, dtype=dtype, num_ranks=ranks, seconds=seconds, best_s=seconds, device=device,
        backend=backend,
    )  # fmt: skip


def osu_samples(paths: Sequence[Path], *, device: str, dtype: str, ranks: int | None) -> str:
    """Return OSU latency tables as a samples file; OSU does not print the number of ranks.

    OSU's size is what one rank contributes: for all-gather, all-to-all and reduce-scatter the whole buffer
    is as many times larger as there are ranks, except that its reduce-scatter prints the whole already.
    """
    if ranks is None or ranks < 2:
        message = "import osu needs --ranks: OSU's output does not say how many took part"
        raise InputError(message)
    found: list[Sample] = []
    for path in paths:
        text = _text(path)
        title = _OSU_TITLE.search(text)
        name = title.group(1).lower() if title else ""
        pairs = re.findall(r"^(\d+)\s+(\d+(?:\.\d+)?)", text, re.MULTILINE)
        rows = [(float(size), float(us) * 1e-6) for size, us in pairs if float(size) > 0 and float(us) > 0]
        if not rows:
            raise SpecError(str(path), ["no line with size and latency; is this an OSU latency test?"])
        if name in _OSU_OPS:
            kind = _OSU_OPS[name]
            scale = ranks if kind in ("all_gather", "all_to_all") else 1
            found += [_collective(kind, s * scale, t, ranks, ranks, device, dtype, "osu") for s, t in rows]
        elif name in ("", "mpi"):
            found += [_collective("p2p", s, t, 2, ranks, device, dtype, "osu") for s, t in rows]
        else:
            known = ", ".join(_OSU_OPS)
            raise SpecError(str(path), [f"OSU test {name!r} is not known; accepted: latency, {known}"])
    return lines(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLog:
    """What one training log says."""

    path: Path
    step_s: tuple[float, ...] = ()
    """Of every step line, in order."""
    memory_bytes: float | None = None
    """Largest peak of the allocator that is printed."""
    arguments: dict[str, str] = field(default_factory=dict)
    """What the framework printed of its configuration, by the columns of a run table."""
    out_of_memory: bool = False

    @property
    def median_s(self) -> float | None:
        """Return the median step after warm-up; None where the log has no step."""
        steady = self.step_s[_WARM_UP_STEPS:] or self.step_s
        return float(np.median(steady)) if steady else None


_STEP_LINES = (
    (re.compile(r"elapsed time per iteration \(ms\):\s*([\d.]+)"), 1e-3),
    (re.compile(r"elapsed time per iteration \(s\):\s*([\d.]+)"), 1.0),
    (re.compile(r"\biter time \(s\):\s*([\d.]+)"), 1.0),
    (re.compile(r"\bstep time:?\s*([\d.]+)\s*s\b"), 1.0),
)
_MEMORY_LINES = (
    (re.compile(r"max allocated:\s*([\d.]+)"), 2.0**20),
    (re.compile(r"Max_MA\s+([\d.]+)\s*GB|MaxMemAllocated=([\d.]+)\s*GB"), 2.0**30),
)  # fmt: skip
_ARGUMENTS = {
    "tensor_model_parallel_size": "tp",
    "pipeline_model_parallel_size": "pp",
    "data_parallel_size": "dp",
    "context_parallel_size": "cp",
    "expert_model_parallel_size": "ep",
    "micro_batch_size": "mbs",
    "train_micro_batch_size_per_gpu": "mbs",
    "global_batch_size": "gbs",
    "train_batch_size": "gbs",
    "world_size": "n_gpus",
    "num_layers": "layers",
    "hidden_size": "hidden",
    "ffn_hidden_size": "ffn_hidden",
    "num_attention_heads": "heads",
    "num_query_groups": "kv_heads",
    "seq_length": "seq",
    "padded_vocab_size": "vocab",
    "zero_optimization_stage": "zero",
    "sequence_parallel": "sp",
    "use_distributed_optimizer": "dist_opt",
    "use_flash_attn": "flash_attn",
}
_ARGUMENT_LINE = re.compile(r"^\s*(?:\[[^\]]*\]\s*)*(\w+)\s*\.{2,}\s*(\S+)\s*$", re.MULTILINE)
_COLUMNS = (
    "row_id", "source", "source_ref", "model", "arch", "hidden", "ffn_hidden", "layers", "heads", "kv_heads",
    "seq", "vocab", "gpu", "gpu_mem_gb", "gpus_per_node", "n_gpus", "tp", "pp", "dp", "cp", "sp", "ep", "vpp",
    "mbs", "gbs", "recompute", "zero", "dist_opt", "flash_attn", "kernel", "precision", "intra_gbps",
    "inter_gbps_per_gpu", "iter_time_s", "mem_gb", "oom", "group",
)  # fmt: skip


def read_training_log(path: Path) -> TrainingLog:
    """Return steps, peak memory and arguments of a Megatron-LM or DeepSpeed log.

    Raises
    ------
    SpecError
        if the file cannot be read, or has neither a step line nor an out-of-memory error; NaN is no time.
    """
    text = _text(path)
    steps = [
        (match.start(), float(match.group(1)) * unit)
        for pattern, unit in _STEP_LINES
        for match in pattern.finditer(text)
    ]
    oom = bool(re.search(r"out of memory", text, re.IGNORECASE))
    if not steps and not oom:
        raise SpecError(
            str(path),
            ["no step line found; expected 'elapsed time per iteration (ms): ...' (Megatron-LM) or "
             "'iter time (s): ...' (DeepSpeed)"],
        )  # fmt: skip
    wrong = [s for _, s in steps if not s > 0]
    if wrong:
        raise SpecError(str(path), [f"a step time is {wrong[0]} s; expected a positive number"])
    peaks = [
        float(next(g for g in match.groups() if g)) * unit
        for pattern, unit in _MEMORY_LINES
        for match in pattern.finditer(text)
    ]
    arguments = {}
    for name, value in _ARGUMENT_LINE.findall(text):
        if name in _ARGUMENTS and value not in ("None", "null"):
            arguments[_ARGUMENTS[name]] = {"True": "1", "False": "0"}.get(value, value)
    for flag in ("bf16", "fp16"):
        if re.search(rf"^\s*(?:\[[^\]]*\]\s*)*{flag}\s*\.{{2,}}\s*True", text, re.MULTILINE):
            arguments["precision"] = flag
    return TrainingLog(
        path=path,
        step_s=tuple(s for _, s in sorted(steps)),
        memory_bytes=max(peaks, default=None),
        arguments=arguments,
        out_of_memory=oom,
    )


def training_rows(paths: Sequence[Path], *, device: str, dtype: str, ranks: int | None) -> str:
    """Return training logs as a run table that `backtest train` reads; blank cells are yours to fill."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for path in paths:
        log = read_training_log(path)
        row: dict[str, object] = dict(log.arguments)
        row |= {
            "row_id": path.stem,
            "source": "log",
            "source_ref": path.name,
            "model": f"h{row.get('hidden', '')}-L{row.get('layers', '')}",
            "arch": "gpt",
            "gpu": device,
            "oom": int(log.out_of_memory and not log.step_s),
            "group": "|".join(str(row.get(n, "")) for n in ("hidden", "layers", "n_gpus", "gbs")),
        }
        row.setdefault("precision", dtype)
        if ranks is not None:
            row.setdefault("n_gpus", ranks)
        if log.median_s is not None:
            row["iter_time_s"] = f"{log.median_s:.6g}"
        if log.memory_bytes is not None:
            row["mem_gb"] = f"{log.memory_bytes / 2**30:.6g}"
        writer.writerow(row)
    return out.getvalue()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SpecError(str(path), [f"cannot be read: {error.strerror}"]) from None


KINDS: dict[str, Callable[..., str]] = {
    "nccl-samples": nccl_samples,
    "rccl-samples": nccl_samples,
    "osu": osu_samples,
    "megatron-log": training_rows,
    "deepspeed-log": training_rows,
}
"""Kinds of `meshwright import` that give measurements rather than a cluster."""


def imported_text(
    kind: str, paths: Sequence[Path], *, device: str | None, dtype: str = "bf16", ranks: int | None = None
) -> str:
    """Return measurements as the text of a samples file or of a run table.

    Raises
    ------
    InputError
        if the device is missing.
    """
    if device is None:
        message = f"import {kind} needs --device: the catalogue name of what was measured"
        raise InputError(message)
    return KINDS[kind](paths, device=device, dtype=dtype, ranks=ranks)
