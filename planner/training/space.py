"""Every legal training strategy of a job on a cluster, as columns.

The space grows axis by axis: each axis multiplies the rows by its values and each named rule drops rows at
once, so nothing illegal is ever expanded. The counts of `excluded` are rows at the moment they were dropped:
partial strategies, each standing for all that would have grown from it. Canonical means that no two rows
describe the same run: no sequence parallelism without tensor parallelism, no sharding without replicas, no
interleaving without stages, no expert degrees without experts, no switch where it changes nothing.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from costmodels.job import TrainingJob
from costmodels.layer_split import MOST_STAND_INS
from costmodels.stacks import find_stack
from costmodels.strategy import ConfigTable, Recompute
from hardware.levels import Level, LinkKind
from planner.plan import Excluded
from planner.training.space_rules import RULES, ModelLimits, divisors, model_limits

__all__ = ["LEFT_OUT", "TrainingSpace", "training_space"]

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Columns = dict[str, Ints]

LEFT_OUT: dict[str, str] = {
    "every-device-works": "strategies that leave devices idle are not enumerated",
    "stages-of-equal-depth": "layers are spread over stages as evenly as they divide, one strategy for all",
    "expert-tensor-whole-or-none": "expert tensor degrees other than 1 and tp are not enumerated",
    "overlap-where-possible": "overlap of gradient reduction and sends is never switched off",
    "fewest-recomputed-layers": "between none and all layers, only the fewest that fit are kept",
}
"""What the space never holds, said in every plan; nothing of it is expanded, so its count is zero."""

_SHARDED_PIPELINES = ("fsdp2", "torchtitan")
"""Stacks whose full sharding composes with pipeline parallelism (torchtitan's documentation of FSDP2)."""
_SCALE_UP = (LinkKind.SWITCH, LinkKind.MESH, LinkKind.TORUS, LinkKind.PCIE)
_ROWS_PER_CHUNK = 1 << 17


@dataclass(slots=True, kw_only=True)
class TrainingSpace:
    """A space half expanded: its remaining axes are multiplied out chunk by chunk."""

    job: TrainingJob
    limits: ModelLimits
    levels: tuple[Level, ...]
    recompute: tuple[int, ...]
    sharded_pipelines: bool
    allow: Mapping[str, tuple[int, ...]]
    prefix: Columns
    counts: Counter[str] = field(default_factory=Counter)

    def excluded(self) -> tuple[Excluded, ...]:
        """Return what each rule dropped so far, in the order of the rules; complete after all chunks."""
        counted = tuple(
            Excluded(rule=name, count=self.counts[name], why=why)
            for name, why in RULES.items()
            if self.counts[name]
        )
        return counted + tuple(Excluded(rule=name, count=0, why=why) for name, why in LEFT_OUT.items())

    def chunks(self, max_rows: int = _ROWS_PER_CHUNK) -> Iterator[ConfigTable]:
        """Yield all strategies, at most about `max_rows` at a time, always in the same order."""
        growth = 2 * len(self.recompute) * (4 + 3 * (len(self.levels) - 1)) * 2
        step = max(max_rows // growth, 1)
        for start in range(0, len(self.prefix["tp"]), step):
            table = {name: column[start : start + step] for name, column in self.prefix.items()}
            rows = self._with_switches(self._with_sharding(table))
            if len(rows["tp"]):
                yield ConfigTable.from_columns(**rows)

    def _keep(self, table: Columns, rule: str, legal: Mask) -> Columns:
        if legal.all():
            return table
        self.counts[rule] += int(len(legal) - np.count_nonzero(legal))
        return {name: column[legal] for name, column in table.items()}

    def _allowed(self, table: Columns, *names: str) -> Columns:
        for name in names:
            if name in self.allow:
                wanted = np.array(self.allow[name], dtype=np.int64)
                table = self._keep(table, "request-allows", np.isin(table[name], wanted))
        return table

    def _with_sharding(self, table: Columns) -> Columns:
        table = _cross(table, sequence_parallel=(0, 1))
        table = _only(table, (table["sequence_parallel"] == 0) | (table["tp"] > 1))
        parallel = table["sequence_parallel"] > 0
        pieces = self.job.seq_len // table["cp"]
        table = self._keep(table, "tokens-divide-tp", ~parallel | (pieces % table["tp"] == 0))
        if self.limits.experts:
            legal = (table["sequence_parallel"] > 0) | (table["tp"] == 1) | (table["ep"] == 1)
            table = self._keep(table, "experts-need-sequence-parallel", legal)
        table = _cross(table, recompute=self.recompute)
        table = self._allowed(table, "sequence_parallel", "recompute")
        return self._with_zero(table)

    def _with_zero(self, table: Columns) -> Columns:
        pairs = [(0, -1)] + [(zero, level) for zero in (1, 2, 3) for level in range(-1, len(self.levels) - 1)]
        table = _cross(table, pair=range(len(pairs)))
        zero = np.array([z for z, _ in pairs])[table["pair"]]
        level = np.array([at for _, at in pairs])[table.pop("pair")]
        replicas = table["dp"] * table["cp"]
        sizes = np.array([one.size for one in self.levels])[level]
        group = np.where(level < 0, 0, sizes // table["tp"])
        whole = (sizes % table["tp"] == 0) & (group > 1) & (group < replicas)
        table |= {"zero": zero, "shard_group": group}
        table = _only(table, (zero == 0) | ((replicas > 1) & ((level < 0) | whole)))
        fills = table["shard_group"] == 0
        fills |= table["dp"] * table["cp"] % np.maximum(table["shard_group"], 1) == 0
        table = self._keep(table, "shard-groups-fill-a-level", fills)
        if not self.sharded_pipelines:
            legal = (table["zero"] < 2) | (table["pp"] == 1)
            table = self._keep(table, "full-shards-need-one-stage", legal)
        return self._allowed(table, "zero", "shard_group")

    def _with_switches(self, table: Columns) -> Columns:
        table = _cross(table, overlap_tp=(0, 1))
        table = _only(table, (table["overlap_tp"] == 0) | (table["sequence_parallel"] > 0))
        scale_up = max((one.size for one in self.levels if one.kind in _SCALE_UP), default=1)
        inside = (table["overlap_tp"] == 0) | (scale_up % table["tp"] == 0)
        table = self._keep(table, "tp-overlap-inside-scale-up", inside)
        for name, useful in (
            ("overlap_dp", table["dp"] * table["cp"] > 1),
            ("overlap_pp", (table["vpp"] > 1)),
        ):
            on = 0 if self.allow.get(name) == (0,) else 1
            table[name] = np.where(useful, on, 0)
        return self._allowed(table, "overlap_tp")


def _cross(table: Columns, **axes: Sequence[int]) -> Columns:
    """Return every row with every value of one more column."""
    ((name, values),) = axes.items()
    count = len(next(iter(table.values())))
    grown = {key: np.repeat(column, len(values)) for key, column in table.items()}
    grown[name] = np.tile(np.array(values, dtype=np.int64), count)
    return grown


def _only(table: Columns, rows: Mask) -> Columns:
    """Return the rows that are canonical; what is dropped is a duplicate or meaningless, so not counted."""
    return table if rows.all() else {name: column[rows] for name, column in table.items()}


def _layouts(space: TrainingSpace, world: int) -> Columns:
    """Return the legal (tp, pp, cp, dp) that fill the world."""
    limits, job = space.limits, space.job
    degrees = divisors(world)
    table = _cross({"tp": np.array(degrees, dtype=np.int64)}, pp=degrees)
    table = _only(table, world % (table["tp"] * table["pp"]) == 0)
    tp = table["tp"]
    if limits.heads:
        table = space._keep(table, "tp-divides-heads", limits.heads % tp == 0)
    for heads in limits.kv_heads:
        tp = table["tp"]
        table = space._keep(table, "tp-divides-kv-heads", (heads % tp == 0) | (tp % heads == 0))
    fits = (limits.features % table["tp"] == 0) if limits.features else table["tp"] == 1
    table = space._keep(table, "tp-divides-features", fits)
    per_stage = -(-limits.num_layers // table["pp"])
    filled = per_stage * (table["pp"] - 1) < limits.num_layers
    table = space._keep(table, "layers-per-stage", filled)
    table = _cross(table, cp=degrees)
    table = _only(table, world % (table["tp"] * table["pp"] * table["cp"]) == 0)
    cp = table["cp"]
    table = space._keep(table, "cp-splits-the-sequence", (cp == 1) | (job.seq_len % (2 * cp) == 0))
    if not limits.causal:
        table = space._keep(table, "cp-needs-causal-attention", table["cp"] == 1)
    table["dp"] = world // (table["tp"] * table["pp"] * table["cp"])
    table = space._keep(table, "global-batch-divisible", job.global_batch % table["dp"] == 0)
    return space._allowed(table, "tp", "pp", "cp", "dp")


def _with_experts(space: TrainingSpace, table: Columns) -> Columns:
    limits = space.limits
    if not limits.experts:
        return table | {"ep": np.ones_like(table["tp"]), "etp": np.ones_like(table["tp"])}
    table = _cross(table, ep=divisors(limits.experts))
    table = _cross(table, whole=(0, 1))
    whole = table.pop("whole")
    table["etp"] = np.where(whole > 0, table["tp"], 1)
    table = _only(table, (whole == 0) | (table["tp"] > 1))
    ranks = table["tp"] * table["cp"] * table["dp"]
    table = space._keep(table, "experts-divide-the-stage", ranks % (table["ep"] * table["etp"]) == 0)
    divides = limits.expert_features % table["etp"] == 0
    table = space._keep(table, "etp-divides-expert-features", divides)
    return space._allowed(table, "ep", "etp")


def _with_batches(space: TrainingSpace, table: Columns) -> Columns:
    """Return the rows with their micro-batches and interleavings."""
    layers, batch = space.limits.num_layers, space.job.global_batch
    table = _cross(table, micro_batch=divisors(batch))
    fits = batch // table["dp"] % table["micro_batch"] == 0
    table = space._keep(table, "global-batch-divisible", fits)
    most = MOST_STAND_INS if find_stack(space.job.stack).spares_ends else 0
    table = _cross(table, vpp=sorted({d for n in range(most + 1) for d in divisors(layers + n)}))
    table = _only(table, (table["vpp"] == 1) | (table["pp"] > 1))
    missing = -layers % (table["pp"] * table["vpp"])
    even = (table["vpp"] == 1) | (missing <= most)
    table = space._keep(table, "even-layers-for-interleaving", even)
    chunks = table["pp"] * table["vpp"]
    filled = (table["vpp"] == 1) | (layers % chunks == 0) | (layers > chunks)
    table = space._keep(table, "layers-per-stage", filled)
    rounds = batch // (table["dp"] * table["micro_batch"]) % table["pp"] == 0
    legal = (table["vpp"] == 1) | rounds
    table = space._keep(table, "microbatches-multiple-of-pp-for-interleaving", legal)
    return space._allowed(table, "micro_batch", "vpp")


def training_space(
    job: TrainingJob,
    *,
    world: int,
    levels: tuple[Level, ...],
    flash_attention: bool,
    allow: Mapping[str, tuple[int, ...]] | None = None,
) -> TrainingSpace:
    """Return the whole legal canonical space of `job` on `world` devices.

    Parameters
    ----------
    job : what is trained; its stack decides whether full sharding composes with stages.
    world : devices, all of which are used.
    levels : of the cluster, inner to outer; shard groups end at their borders.
    flash_attention : the stack never stores attention scores, so selective recomputation is nothing new.
    allow : values that the request accepts, by column; columns not named are free.
    """
    recompute = [Recompute.NONE, Recompute.FULL] if flash_attention else list(Recompute)
    space = TrainingSpace(
        job=job,
        limits=model_limits(job.model),
        levels=levels,
        recompute=tuple(int(r) for r in recompute),
        sharded_pipelines=job.stack in _SHARDED_PIPELINES,
        allow=dict(allow or {}),
        prefix={},
    )
    layouts = _layouts(space, world)
    space.prefix = _with_batches(space, _with_experts(space, layouts))
    return space
