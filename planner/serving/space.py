"""Engine configurations worth costing on one device type: legal degrees, allowed formats, fitting weights."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from costmodels.graph import Experts, ModelGraph
from costmodels.serving.config import Quant, ServingTable
from costmodels.serving.degrees import DEGREE_RULES, broken_rule
from costmodels.serving.engine import EngineStack
from costmodels.serving.memory import kv_bytes_per_request, serving_memory
from hardware.device import Device
from hardware.levels import Level, LinkKind
from planner.plan import Excluded

__all__ = [
    "ServingSpace",
    "quant_of",
    "quants_of",
    "serving_space",
]

Ints = npt.NDArray[np.int64]

_MIN_REQUESTS = 1.0
_RULES = DEGREE_RULES | {
    "weights-and-one-request-fit": "weights and the cache of one longest request exceed the device's memory",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSpace:
    """Configurations that fit, and why others are left out."""

    table: ServingTable
    num_configs: int
    excluded: tuple[Excluded, ...]


def quant_of(label: str) -> Quant:
    """Return the number format of a label such as fp8-block."""
    return Quant[label.upper().replace("-", "_")]


def quants_of(label: str) -> dict[str, Quant]:
    """Return the formats of dense layers, experts and attention's projections; 4-bit ones keep those wide."""
    code = quant_of(label)
    return {
        "weights": code if code is not Quant.MXFP4 else Quant.BF16,
        "experts": code,
        "attention": Quant.BF16 if code in (Quant.NVFP4, Quant.MXFP4, Quant.INT4) else code,
    }


def _degrees(limit: int) -> list[tuple[int, int, int]]:
    """Return (tensor degree, stages, attention groups) in powers of two; stages or groups, not both."""
    steps = [2**k for k in range(limit.bit_length()) if 2**k <= limit]
    return [
        (tp, pp, dp)
        for tp in steps
        for pp in steps
        for dp in steps
        if tp * pp * dp <= limit and 1 in (pp, dp)
    ]


def _fast_size(levels: tuple[Level, ...]) -> int:
    """Return how many devices the innermost level joins by fast links."""
    return levels[0].size if levels and levels[0].kind is not LinkKind.PCIE else 1


def serving_space(
    model: ModelGraph,
    device: Device,
    levels: tuple[Level, ...],
    engine: EngineStack,
    *,
    formats: tuple[str, ...],
    kv_formats: tuple[str, ...],
    max_devices: int,
    longest_request: float,
    draft_tokens: int = 0,
    lora: tuple[int, int] = (0, 0),
) -> ServingSpace:
    """Return every configuration of up to `max_devices` devices that holds the model and one longest request.

    Attention groups and expert parallelism are tried for routed models only; for dense ones, more groups are
    simply more instances. Stages are tried without drafts, where links inside an instance are slow: over PCIe
    or beyond the scale-up domain; inside a fast one tensor parallelism has their place.

    Parameters
    ----------
    lora : rank of adapters and how many are kept in memory.
    """
    experts = _experts(model)
    rows: list[dict[str, int]] = []
    counts = dict.fromkeys(_RULES, 0)
    for tp, pp, dp in _degrees(min(max_devices, levels[-1].size if levels else 1)):
        if (dp > 1 and not experts) or (pp > 1 and (draft_tokens or pp > model.num_layers)):
            continue
        if pp > 1 and tp * pp <= _fast_size(levels):
            continue
        for ep in sorted({1, tp * dp} if experts and dp == 1 else {tp * dp} if experts else {1}):
            if broken := broken_rule(model, tp=tp, ep=ep):
                counts[broken] += 1
                continue
            made = _formatted(tp, dp, ep, formats, kv_formats, engine, draft_tokens)
            rows += [row | {"pp": pp} for row in made]
    table = (
        ServingTable.from_columns(**{n: np.array([r[n] for r in rows]) for n in rows[0]}) if rows else None
    )
    if table is None:
        return ServingSpace(table=ServingTable.from_configs([]), num_configs=0, excluded=_excluded(counts))
    table = replace(table, lora_rank=np.full(len(table), lora[0]), num_adapters=np.full(len(table), lora[1]))
    fits = _fits(model, device, engine, table, longest_request)
    counts["weights-and-one-request-fit"] = int((~fits).sum())
    return ServingSpace(table=table.take(fits), num_configs=len(table), excluded=_excluded(counts))


def _experts(model: ModelGraph) -> list[Experts]:
    return [op for b in model.blocks for op in b.operators if isinstance(op, Experts)]


def _formatted(
    tp: int,
    dp: int,
    ep: int,
    formats: tuple[str, ...],
    kv_formats: tuple[str, ...],
    engine: EngineStack,
    draft_tokens: int,
) -> list[dict[str, int]]:
    """Return rows of one set of degrees in every allowed format."""
    rows = []
    for label in formats:
        quants = {name: int(code) for name, code in quants_of(label).items()}
        rows += [
            {
                "tp": tp,
                "dp": dp,
                "ep": ep,
                **quants,
                "kv": int(quant_of(kv)),
                "max_batch": min(engine.max_batch, engine.token_budget // (1 + draft_tokens)),
                "token_budget": engine.token_budget,
                "chunked": int(engine.chunked),
                "draft_tokens": draft_tokens,
            }
            for kv in kv_formats
        ]
    return rows


def _fits(
    model: ModelGraph, device: Device, engine: EngineStack, table: ServingTable, longest: float
) -> npt.NDArray[np.bool_]:
    memory = serving_memory(
        model,
        table,
        device_bytes=device.memory_bytes,
        memory_frac=engine.memory_frac,
        reserve_bytes=engine.reserve_bytes,
    )
    one = kv_bytes_per_request(model, table, np.array(longest), engine.block_tokens)
    return memory.kv_budget_bytes >= _MIN_REQUESTS * one


def _excluded(counts: dict[str, int]) -> tuple[Excluded, ...]:
    return tuple(Excluded(rule=rule, count=n, why=_RULES[rule]) for rule, n in counts.items() if n)
