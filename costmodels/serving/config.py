"""A serving configuration is one row of degrees, number formats and limits; a ServingTable is many rows.

An *instance* is the smallest set of devices that answers a request: `tp * pp * dp` of them. Attention runs
tensor-parallel over `tp` and data-parallel over `dp` groups, each group with its own requests and its own
KV cache. Experts are spread over the `tp * dp` devices of a stage: `ep` ways whole, the rest cut inside.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import IntEnum

import numpy as np

from costmodels.column_table import ColumnTable, Ints

__all__ = ["Quant", "ServingConfig", "ServingTable"]


class Quant(IntEnum):
    """Number format of weights (and of the activations that meet them), or of the KV cache."""

    BF16 = 0
    FP8 = 1
    """8-bit floats, one scale per tensor or row."""
    FP8_BLOCK = 2
    """8-bit floats, one scale per 128 x 128 block."""
    INT8 = 3
    """8-bit integers for weights and activations (SmoothQuant)."""
    INT4 = 4
    """4-bit weights, 16-bit activations (GPTQ, AWQ; MARLIN-like kernels)."""
    NVFP4 = 5
    """4-bit floats for weights and activations, one 8-bit scale per 16."""
    MXFP4 = 6
    """4-bit float weights, one 8-bit scale per 32; activations in 8 or 16 bits."""

    @property
    def bytes_per_weight(self) -> float:
        """Storage of one weight with its share of the scales."""
        return _BYTES[self]

    @property
    def label(self) -> str:
        """Name in requests and plans: bf16, fp8, fp8-block, int8, int4, nvfp4, mxfp4."""
        return self.name.lower().replace("_", "-")


_BYTES = {
    Quant.BF16: 2.0,
    Quant.FP8: 1.0,
    Quant.FP8_BLOCK: 1.0 + 4.0 / (128 * 128),
    Quant.INT8: 1.0,
    Quant.INT4: 0.5 + 2.0 / 128,
    Quant.NVFP4: 0.5 + 1.0 / 16,
    Quant.MXFP4: 0.5 + 1.0 / 32,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig:
    """One way to run a model on the devices of one instance."""

    tp: int = 1
    """Tensor-parallel degree of attention and dense layers."""
    pp: int = 1
    """Pipeline stages."""
    dp: int = 1
    """Attention groups, each with its own requests (data-parallel attention)."""
    ep: int = 1
    """Ways that whole experts are spread; divides `tp * dp`. The rest of `tp * dp` cuts inside experts."""
    weights: Quant = Quant.BF16
    """Dense layers."""
    experts: Quant = Quant.BF16
    attention: Quant = Quant.BF16
    """Projections around attention; many 4-bit checkpoints keep them in 16 bits."""
    kv: Quant = Quant.BF16
    """KV cache."""
    max_batch: int = 256
    """Requests decoding at once in one attention group."""
    token_budget: int = 8192
    """Tokens of one iteration in one attention group."""
    chunked: bool = True
    """Prompts share iterations with decoding; otherwise a prompt has its iteration to itself."""
    draft_tokens: int = 0
    """Tokens proposed per step by a draft head (MTP) and verified together; 0 is none."""
    lora_rank: int = 0
    """Rank of low-rank adapters on the dense layers; 0 is none."""
    num_adapters: int = 0
    """Adapters kept in device memory."""

    @property
    def num_devices(self) -> int:
        """Devices of one instance."""
        return self.tp * self.pp * self.dp


@dataclass(frozen=True, slots=True, eq=False)
class ServingTable(ColumnTable):
    """Equal-length columns, one row per configuration; column names are the fields of `ServingConfig`."""

    tp: Ints
    pp: Ints
    dp: Ints
    ep: Ints
    weights: Ints
    experts: Ints
    attention: Ints
    kv: Ints
    max_batch: Ints
    token_budget: Ints
    chunked: Ints
    draft_tokens: Ints
    lora_rank: Ints
    num_adapters: Ints

    @property
    def num_devices(self) -> Ints:
        """Devices of one instance. shape (rows,)"""
        return self.tp * self.pp * self.dp

    @property
    def etp(self) -> Ints:
        """Ways that one expert is cut. shape (rows,)"""
        cut: Ints = np.maximum(self.tp * self.dp // np.maximum(self.ep, 1), 1)
        return cut

    @classmethod
    def from_configs(cls, configs: list[ServingConfig]) -> ServingTable:
        """Return a table with one row per configuration, in order."""
        return cls._from_rows([asdict(c) for c in configs])

    @classmethod
    def from_columns(cls, **columns: Ints | int) -> ServingTable:
        """Return a table from columns or scalars, filled up with the defaults of `ServingConfig`."""
        return cls._from_columns(columns, asdict(ServingConfig()))

    def repeat(self, times: int) -> ServingTable:
        """Return every row `times` times, in blocks of equal rows."""
        return self.take(np.repeat(np.arange(len(self)), times))

    def config(self, row: int) -> ServingConfig:
        """Return one row as a `ServingConfig`."""
        values = {f.name: int(getattr(self, f.name)[row]) for f in fields(self)}
        formats = {n: Quant(values[n]) for n in ("weights", "experts", "attention", "kv")}
        return ServingConfig(**(values | formats | {"chunked": bool(values["chunked"])}))  # type: ignore[arg-type]
