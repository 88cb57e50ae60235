"""Measured serving points read from a table: what was run, in this package's terms, or why it cannot be said.

Columns are those of the collection that AIConfigurator ships (Apache-2.0). What a row leaves out is filled by
the rules below, each named in `ServingRun.assumed`:

* ``tp_size`` (or ``attention_dp_size``) of an instance that does both may hold the product of an
  expert-parallel recipe's degrees, 8 x 8 = 64 on 8 devices; where the expert degrees are equal and above one
  they are the width;
* clients in all are ``silicon_concurrency`` in ``source_tag``, else ``batch_size`` per attention group;
* a split deployment without worker counts gets the counts that divide its clients, and one without a
  division of its devices is cut at the decode degree that leaves whole prefill workers.
"""

import csv
import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodels.graph import Experts, ModelGraph
from costmodels.models import find_model
from costmodels.serving.config import Quant, ServingConfig
from hardware.errors import InputError, PlannerError, SpecError

__all__ = ["ServingRun", "read_serving_runs", "run_of_row"]

_QUANTS = {
    "": Quant.BF16, "bf16": Quant.BF16, "float16": Quant.BF16, "fp16": Quant.BF16, "fp8": Quant.FP8,
    "fp8_static": Quant.FP8, "fp8_block": Quant.FP8_BLOCK, "fp8-block": Quant.FP8_BLOCK, "nvfp4": Quant.NVFP4,
    "fp4": Quant.NVFP4, "int4_wo": Quant.INT4, "int4": Quant.INT4, "int8_wo": Quant.INT8, "int8": Quant.INT8,
    "sq": Quant.INT8, "mxfp4": Quant.MXFP4, "w4a16_mxfp4": Quant.MXFP4, "w4a8_mxfp4_mxfp8": Quant.MXFP4,
    "w4afp8": Quant.INT4,
}  # fmt: skip
_NEEDED = ("id", "backend", "model_path", "system", "mode", "isl", "osl")
_RACK_SYSTEMS = ("gb200", "gb300")
_MAX_TENSOR_WIDTH = 8
_BLOCK_SCALED_FAMILIES = ("deepseek", "qwen3", "glm", "kimi")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRun:
    """One measured point."""

    row_id: str
    model: ModelGraph
    system: str
    engine: str
    version: str
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    """Clients in all."""
    decode: ServingConfig
    """The instance that decodes, or does both."""
    num_decode: int = 1
    prefill: ServingConfig | None = None
    """The instance that holds prompts only, in a split deployment."""
    num_prefill: int = 0
    source: str = ""
    """Which measurement campaign."""
    assumed: tuple[str, ...] = ()
    ttft_s: float | None = None
    """Measured."""
    tpot_s: float | None = None
    """Measured."""

    @property
    def num_devices(self) -> int:
        """Devices of the whole deployment."""
        prefill = self.prefill.num_devices * self.num_prefill if self.prefill else 0
        return self.decode.num_devices * self.num_decode + prefill


def read_serving_runs(path: str | Path) -> tuple[list[ServingRun], list[tuple[str, str]]]:
    """Return the runs of a table, and (row id, reason) of every row that says too little.

    Raises
    ------
    InputError
        if the file cannot be read.
    SpecError
        if needed columns are missing.
    """
    path = Path(path)
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = reader.fieldnames or []
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        message = f"{path}: cannot be read as a CSV file ({error})"
        raise InputError(message) from error
    missing = [c for c in _NEEDED if c not in columns]
    if missing:
        raise SpecError(str(path), [f"column {c} is missing" for c in missing])
    if not rows:
        raise SpecError(str(path), ["no rows: the file holds a header only"])
    runs: list[ServingRun] = []
    rejected: list[tuple[str, str]] = []
    for number, row in enumerate(rows, start=2):
        row_id = row.get("id") or f"line {number}"
        try:
            runs.append(run_of_row(row))
        except (PlannerError, ValueError) as error:
            rejected.append((row_id, f"line {number}: {error}"))
    return runs, rejected


def run_of_row(row: Mapping[str, str]) -> ServingRun:
    """Return one row as a run.

    Raises
    ------
    PlannerError
        if the model is unknown or a needed value is missing or wrong.
    """
    model = find_model(row["model_path"])
    assumed: list[str] = []
    total = re.search(r"silicon_concurrency=(\d+)", row.get("source_tag") or "")
    clients = int(total.group(1)) if total else None
    quants = _quants(row, model)
    common: dict[str, Any] = {
        "row_id": row["id"],
        "model": model,
        "system": row["system"],
        "engine": row["backend"],
        "version": row.get("backend_version") or "",
        "prompt_tokens": _whole(row, "isl"),
        "output_tokens": _whole(row, "osl"),
        "source": _campaign(row.get("source_tag") or ""),
        "ttft_s": _seconds(row, "silicon_ttft_ms"),
        "tpot_s": _seconds(row, "silicon_tpot_ms"),
    }
    if row["mode"] == "disagg":
        return _split_run(row, common, quants, clients, assumed)
    width, dp, ep = _degrees(row, "", assumed)
    batch = _optional(row, "batch_size")
    if width > _MAX_TENSOR_WIDTH and row["system"] in _RACK_SYSTEMS and _is_routed(model):
        assumed.append("a rack-scale recipe that counts its devices only is a split deployment")
        return _undivided(common, quants, width * dp, clients or batch, assumed)
    if clients is None:
        if batch is None:
            message = "neither batch_size nor silicon_concurrency is given"
            raise InputError(message)
        clients = batch * dp
    elif batch and clients == batch * width and dp == 1 and ep == width > 1:
        width, dp = 1, width
        assumed.append("clients are batch_size times tp_size: attention runs data-parallel")
    replicas = 1
    if batch and clients > batch * dp * width and not _is_routed(model):
        replicas = clients // batch
        assumed.append("clients beyond batch_size are replicas")
    config = ServingConfig(tp=width, dp=dp, ep=ep, **quants)
    return ServingRun(
        **common, concurrency=clients, decode=config, num_decode=replicas, assumed=tuple(assumed)
    )


def _is_routed(model: ModelGraph) -> bool:
    return any(isinstance(op, Experts) for block in model.blocks for op in block.operators)


def _quants(row: Mapping[str, str], model: ModelGraph) -> dict[str, Any]:
    """Return number formats; quantised routed models keep attention wider than their experts."""
    precision = (row.get("precision") or "").lower()
    dense = _quant(row.get("gemm_quant_mode") or precision)
    routed = _quant(row.get("moe_quant_mode") or row.get("gemm_quant_mode") or precision)
    kv = Quant.BF16 if precision in ("", "bf16", "float16") else Quant.FP8
    attention = dense
    if model.family.startswith("gpt_oss") or model.name.startswith("gpt-oss"):
        return {"weights": Quant.BF16, "experts": Quant.MXFP4, "attention": Quant.BF16, "kv": Quant.BF16}
    if _is_routed(model) and dense is Quant.NVFP4:
        attention = Quant.BF16
    if _is_routed(model) and dense is Quant.INT4:
        dense = attention = kv = Quant.BF16
    blocks = any(model.name.startswith(f) for f in _BLOCK_SCALED_FAMILIES)
    if blocks and _is_routed(model):
        dense, attention, routed = (
            Quant.FP8_BLOCK if q is Quant.FP8 else q for q in (dense, attention, routed)
        )
    return {"weights": dense, "experts": routed, "attention": attention, "kv": kv}


def _quant(name: str) -> Quant:
    if name.lower() not in _QUANTS:
        message = f"number format {name!r} is not known; known: {', '.join(k for k in _QUANTS if k)}"
        raise InputError(message)
    return _QUANTS[name.lower()]


def _degrees(row: Mapping[str, str], prefix: str, assumed: list[str]) -> tuple[int, int, int]:
    """Return tensor degree of attention, attention groups and expert-parallel degree."""
    tp = _optional(row, f"{prefix}tp_size")
    if tp is None:
        message = f"{prefix}tp_size is missing"
        raise InputError(message)
    dp = _optional(row, f"{prefix}attention_dp_size") or 1
    ep = _optional(row, f"{prefix}moe_ep_size") or 1
    etp = _optional(row, f"{prefix}moe_tp_size") or 1
    if not prefix and ep > 1 and ep == etp and tp * dp == ep * etp:
        assumed.append(f"tp degrees are products; the width is {ep}")
        return (1, ep, ep) if dp > 1 else (ep, 1, ep)
    return tp, dp, min(ep, tp * dp)


def _split_run(
    row: Mapping[str, str],
    common: dict[str, Any],
    quants: dict[str, Any],
    clients: int | None,
    assumed: list[str],
) -> ServingRun:
    p_tp, p_dp, p_ep = _degrees(row, "prefill_", assumed)
    d_tp, d_dp, d_ep = _degrees(row, "decode_", assumed)
    num_p, num_d = _optional(row, "prefill_num_workers"), _optional(row, "decode_num_workers")
    batch = _optional(row, "decode_batch_size")
    if clients is None:
        if batch is None:
            message = "neither decode_batch_size nor silicon_concurrency is given"
            raise InputError(message)
        clients = batch * d_dp * (num_d or 1)
        assumed.append("clients are decode_batch_size times decode groups")
    if num_d is None and p_tp == d_tp > _MAX_TENSOR_WIDTH and row["system"] in _RACK_SYSTEMS:
        assumed.append("equal degrees above 8 are the devices in all")
        return _undivided(common, quants, d_tp, clients, assumed)
    if num_d is None:
        assumed.append("worker counts are those that divide the clients")
        d_tp, d_dp, num_d = _guess_decode(d_tp * d_dp, clients)
        d_ep = d_tp * d_dp
        p_tp, p_dp, p_ep = 1, p_tp * p_dp, p_tp * p_dp
    return ServingRun(
        **common,
        concurrency=clients,
        decode=ServingConfig(tp=d_tp, dp=d_dp, ep=d_ep, **quants),
        num_decode=num_d,
        prefill=ServingConfig(tp=p_tp, dp=p_dp, ep=p_ep, **quants),
        num_prefill=num_p or 0,
        assumed=tuple(assumed),
    )


def _guess_decode(width: int, clients: int) -> tuple[int, int, int]:
    """Return tensor degree, attention groups and instances of a decode pool of known width and clients."""
    if width <= 16 and clients < 40 * min(width, _MAX_TENSOR_WIDTH):
        divisors = [n for n in (4, 5, 7, 3, 9) if clients % n == 0 and clients >= n]
        return width, 1, divisors[0] if divisors else 1
    return 1, width, 1


def _undivided(
    common: dict[str, Any], quants: dict[str, Any], devices: int, clients: int | None, assumed: list[str]
) -> ServingRun:
    """Return a split run of which only the devices are known: prefill workers of four, one decode recipe."""
    if clients is None:
        message = "neither batch_size nor silicon_concurrency is given"
        raise InputError(message)
    width = next((w for w in (32, 16, 8, 4) if w <= devices - 4 and clients >= 2 * w), 4)
    tp, dp, count = 1, width, 1
    if clients < 8 * devices and (devices - 4) % 8 == 0:
        tp, dp, count = 8, 1, (devices - 4) // 8
    assumed.append(f"decode is {count} x {tp * dp} devices")
    left = max((devices - tp * dp * count) // 4, 1)
    return ServingRun(
        **common,
        concurrency=clients,
        decode=ServingConfig(tp=tp, dp=dp, ep=tp * dp, **quants),
        num_decode=count,
        prefill=ServingConfig(dp=4, ep=4, **quants),
        num_prefill=left,
        assumed=tuple(assumed),
    )


def _campaign(tag: str) -> str:
    if "/" in tag.split(";")[0] and "db-dump" not in tag:
        return "gap"
    return "gap" if "gtl_" in tag else "inferencex"


def _whole(row: Mapping[str, str], name: str) -> int:
    value = _optional(row, name)
    if value is None or value < 1:
        message = f"{name}: {row.get(name)!r} is not a whole number from 1 up"
        raise InputError(message)
    return value


def _optional(row: Mapping[str, str], name: str) -> int | None:
    text = (row.get(name) or "").strip()
    if not text or text.lower() == "nan":
        return None
    value = float(text)
    if value != int(value) or value < 1:
        message = f"{name}: {text!r} is not a whole number from 1 up"
        raise InputError(message)
    return int(value)


def _seconds(row: Mapping[str, str], name: str) -> float | None:
    text = (row.get(name) or "").strip()
    return float(text) * 1e-3 if text and text.lower() != "nan" else None
