"""Measured kernel times read from CSV files: GEMM, attention, latent attention and routed experts.

Accepted columns are those of the public aiconfigurator kernel tables; milliseconds become seconds here.
"""

import csv
import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from costmodels.kernels.attention import CONTEXT, CONTEXT_MLA, DECODE, DECODE_MLA
from costmodels.kernels.experts import EXPERTS
from costmodels.kernels.machine import Family, Floats, find_format
from costmodels.kernels.matmul import MATMUL
from hardware.errors import OutOfDomainError, SpecError

__all__ = ["FAMILIES", "KernelSamples", "file_sha256", "read_kernel_samples"]

FAMILIES: dict[str, Family] = {f.name: f for f in (MATMUL, CONTEXT, DECODE, CONTEXT_MLA, DECODE_MLA, EXPERTS)}
_MLA_HEAD_DIM, _MLA_VALUE_DIM = 192.0, 128.0
"""Query and value width of one head while latents are expanded (DeepSeek-V3, arXiv 2412.19437, sec. 4.2)."""

Table = dict[str, list[str]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelSamples:
    """Rows of one kernel table, as shape columns and measured seconds."""

    family: Family
    shape: dict[str, Floats]
    dtype: npt.NDArray[np.str_]
    """Number format of every row, in our spelling."""
    seconds: Floats
    row: npt.NDArray[np.int64]
    """Line of the file, the header being line 1."""
    labels: dict[str, list[str]]
    """Every column of the accepted rows, as written."""
    rejected: tuple[tuple[int, str], ...]
    """Line and reason of rows that cannot be used."""

    def __len__(self) -> int:
        return len(self.seconds)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(path: Path) -> Table:
    opener: Callable[..., object] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as handle:  # type: ignore[attr-defined]
            rows = list(csv.reader(handle))
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise SpecError(str(path), [f"cannot be read as a CSV file: {error}"]) from error
    if len(rows) < 2:
        raise SpecError(str(path), ["holds no rows; expected a header line and at least one row"])
    header = rows[0]
    uneven = [i for i, r in enumerate(rows[1:], 2) if len(r) != len(header)]
    if uneven:
        raise SpecError(
            str(path), [f"line {uneven[0]} has {len(rows[uneven[0] - 1])} cells, the header {len(header)}"]
        )
    return {name: [r[i] for r in rows[1:]] for i, name in enumerate(header)}


_NEEDED = {
    "matmul": ("m", "n", "k"),
    "experts": (
        "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size",
        "distribution",
    ),
    "mla": ("op_name", "num_heads", "batch_size", "isl", "step", "kv_cache_dtype"),
    "attention": (
        "batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "window_size",
        "kv_cache_dtype",
    ),
}  # fmt: skip
_DTYPE_COLUMN = {
    "matmul": "gemm_dtype",
    "experts": "moe_dtype",
    "mla": "mla_dtype",
    "attention": "attn_dtype",
}


def _kind(path: Path, table: Table, op: str | None) -> str:
    if op is not None:
        if op not in _NEEDED:
            raise SpecError(str(path), [f"op {op!r} is not one of {', '.join(_NEEDED)}"])
        return op
    for kind, column in _DTYPE_COLUMN.items():
        if column in table:
            return kind
    wanted = ", ".join(_DTYPE_COLUMN.values())
    raise SpecError(str(path), [f"no kernel table: none of the columns {wanted}; found {', '.join(table)}"])


def _numbers(table: Table, name: str) -> Floats:
    def number(cell: str) -> float:
        try:
            return float(cell)
        except ValueError:
            return float("nan")

    return np.array([number(cell) for cell in table[name]], dtype=np.float64)


def _cache_bytes(table: Table) -> Floats:
    return np.array(
        [2.0 if v in ("bfloat16", "float16", "bf16", "fp16") else 1.0 for v in table["kv_cache_dtype"]]
    )


def _matmul_shape(table: Table) -> tuple[Family, dict[str, Floats]]:
    return MATMUL, {c: _numbers(table, c) for c in ("m", "n", "k")}


def _skew(name: str) -> float:
    if name == "balanced":
        return 0.0
    try:
        return float(name.removeprefix("power_law_"))
    except ValueError:
        return float("nan")


def _experts_shape(table: Table) -> tuple[Family, dict[str, Floats]]:
    names = {
        "tokens": "num_tokens", "hidden": "hidden_size", "ffn_hidden": "inter_size", "top_k": "topk",
        "num_experts": "num_experts", "etp": "moe_tp_size", "ep": "moe_ep_size",
    }  # fmt: skip
    shape = {ours: _numbers(table, theirs) for ours, theirs in names.items()}
    shape["skew"] = np.array([_skew(v) for v in table["distribution"]], dtype=np.float64)
    return EXPERTS, shape


def _sequence_shape(table: Table) -> tuple[bool, dict[str, Floats]]:
    """Return whether the table is of decode kernels, and the columns that all attention tables share."""
    new, step = _numbers(table, "isl"), _numbers(table, "step")
    shape = {
        "batch": _numbers(table, "batch_size"),
        "q_len": new,
        "kv_len": new + step,
        "heads": _numbers(table, "num_heads"),
        "kv_bytes": _cache_bytes(table),
    }
    return bool(np.nanmax(new) == 1.0 and np.nanmax(step) > 0.0), shape


def _mla_shape(table: Table) -> tuple[Family, dict[str, Floats]]:
    _, shape = _sequence_shape(table)
    if table["op_name"][0] == "mla_generation":
        del shape["q_len"]
        return DECODE_MLA, shape
    fixed = {"head_dim": _MLA_HEAD_DIM, "value_dim": _MLA_VALUE_DIM, "causal": 1.0, "window": 0.0}
    extra = {name: np.full(len(shape["batch"]), value) for name, value in fixed.items()}
    return CONTEXT_MLA, shape | extra | {"kv_heads": shape["heads"]}


def _attention_shape(table: Table) -> tuple[Family, dict[str, Floats]]:
    decode, shape = _sequence_shape(table)
    shape["kv_heads"] = _numbers(table, "num_key_value_heads")
    shape["head_dim"] = _numbers(table, "head_dim")
    shape["window"] = _numbers(table, "window_size")
    if decode:
        del shape["q_len"]
        return DECODE, shape
    return CONTEXT, shape | {"value_dim": shape["head_dim"], "causal": np.ones(len(shape["batch"]))}


_SHAPES = {
    "matmul": _matmul_shape,
    "experts": _experts_shape,
    "mla": _mla_shape,
    "attention": _attention_shape,
}


def _dtypes(table: Table, column: str) -> tuple[npt.NDArray[np.str_], dict[str, str]]:
    names: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for spelling in sorted(set(table[column])):
        try:
            names[spelling] = find_format(spelling).name
        except OutOfDomainError as error:
            names[spelling] = ""
            unknown[spelling] = str(error)
    return np.array([names[v] for v in table[column]], dtype=np.str_), unknown


def read_kernel_samples(path: Path | str, *, op: str | None = None) -> KernelSamples:
    """Return the samples of one kernel table.

    Parameters
    ----------
    path : CSV file, plain or gzip.
    op : matmul, attention, mla or experts; recognised from the columns when not given.

    Raises
    ------
    SpecError
        if the file cannot be read, is no kernel table or misses columns (all of them are named).
    """
    path = Path(path)
    table = _read(path)
    kind = _kind(path, table, op)
    time_column = next((c for c in ("latency_ms", "latency") if c in table), None)
    missing = [c for c in (*_NEEDED[kind], _DTYPE_COLUMN[kind]) if c not in table]
    missing += [] if time_column else ["latency_ms"]
    if missing or time_column is None:
        raise SpecError(str(path), [f"column {c!r} is missing; found {', '.join(table)}" for c in missing])
    family, shape = _SHAPES[kind](table)
    dtype, unknown = _dtypes(table, _DTYPE_COLUMN[kind])
    seconds = _numbers(table, time_column) * 1e-3
    ok = np.isfinite(seconds) & (seconds > 0) & (dtype != "")
    reasons = {}
    for i in np.flatnonzero(~ok):
        spelled = table[_DTYPE_COLUMN[kind]][i]
        reasons[int(i)] = unknown.get(
            spelled, f"{time_column} {table[time_column][i]!r} is not a positive number"
        )
    for name, column in shape.items():
        low = 0.0 if name in ("window", "skew", "causal") else 1.0
        bad = ~(np.isfinite(column) & (column >= low))
        reasons |= {int(i): f"{name} is not a number of at least {low:g}" for i in np.flatnonzero(bad & ok)}
        ok &= ~bad
    keep = np.flatnonzero(ok)
    return KernelSamples(
        family=family,
        shape={name: column[keep] for name, column in shape.items()},
        dtype=dtype[keep],
        seconds=seconds[keep],
        row=keep + 2,
        labels={name: [cells[i] for i in keep] for name, cells in table.items()},
        rejected=tuple((i + 2, why) for i, why in sorted(reasons.items())),
    )
