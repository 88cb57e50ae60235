"""A strategy is one row of degrees and switches; a ConfigTable is many rows as columns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import IntEnum

from costmodels.column_table import ColumnTable, Ints

__all__ = ["ConfigTable", "Recompute", "Strategy"]


class Recompute(IntEnum):
    """Which activations are dropped after forward and computed again in backward."""

    NONE = 0
    SELECTIVE = 1
    """Attention scores only (what flash attention does anyway)."""
    FULL = 2
    """Every layer keeps its input only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One way to lay a training job over devices.

    The world is ``tp * cp * pp * dp``; ep divides ``dp * cp * tp / etp``.
    """

    tp: int = 1
    """Tensor-parallel degree."""
    pp: int = 1
    """Pipeline stages."""
    dp: int = 1
    """Data-parallel replicas."""
    cp: int = 1
    """Context-parallel degree: shards of one sequence."""
    ep: int = 1
    """Expert-parallel degree, carved from dp (and cp)."""
    etp: int = 1
    """Tensor-parallel degree inside an expert."""
    vpp: int = 1
    """Model chunks per pipeline rank (interleaving)."""
    micro_batch: int = 1
    """Sequences per micro-batch and replica."""
    sequence_parallel: bool = False
    recompute: Recompute = Recompute.NONE
    recompute_layers: int = 0
    """Layers per rank under full recompute; 0 means all of them when `recompute` is FULL."""
    zero: int = 1
    """0: all replicated, 1: optimizer sharded, 2: and gradients, 3: and weights (FSDP)."""
    shard_group: int = 0
    """Ranks over which `zero` shards; 0 means all data-parallel (and context-parallel) ranks."""
    overlap_dp: bool = True
    """Gradient reduction (and ZeRO gathers) run under compute, by bucket."""
    overlap_tp: bool = False
    """Tensor-parallel collectives are split into tiles under their matmul."""
    overlap_pp: bool = False
    """Stage-to-stage sends run under compute (interleaved schedules only)."""

    @property
    def world(self) -> int:
        """Devices used."""
        return self.tp * self.cp * self.pp * self.dp


@dataclass(frozen=True, slots=True, eq=False)
class ConfigTable(ColumnTable):
    """Equal-length columns, one row per strategy; column names are the fields of `Strategy`."""

    tp: Ints
    pp: Ints
    dp: Ints
    cp: Ints
    ep: Ints
    etp: Ints
    vpp: Ints
    micro_batch: Ints
    sequence_parallel: Ints
    recompute: Ints
    recompute_layers: Ints
    zero: Ints
    shard_group: Ints
    overlap_dp: Ints
    overlap_tp: Ints
    overlap_pp: Ints

    @classmethod
    def from_strategies(cls, strategies: list[Strategy]) -> ConfigTable:
        """Return a table with one row per strategy, in order."""
        return cls._from_rows([asdict(s) for s in strategies])

    @classmethod
    def from_columns(cls, **columns: Ints | int) -> ConfigTable:
        """Return a table from columns or scalars, filled up with the defaults of `Strategy`."""
        return cls._from_columns(columns, asdict(Strategy()))

    def strategy(self, row: int) -> Strategy:
        """Return one row as a `Strategy`."""
        values = {f.name: int(getattr(self, f.name)[row]) for f in fields(self)}
        switches = {
            n: bool(values[n]) for n in ("sequence_parallel", "overlap_dp", "overlap_tp", "overlap_pp")
        }
        return Strategy(**(values | switches | {"recompute": Recompute(values["recompute"])}))  # type: ignore[arg-type]
