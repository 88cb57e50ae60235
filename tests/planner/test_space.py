import itertools

import numpy as np
import pytest

from costmodels.graph import ModelGraph
from costmodels.graph_import.transformer import transformer_graph
from costmodels.job import TrainingJob
from costmodels.strategy import ConfigTable, Recompute, Strategy
from hardware.levels import Level, LinkKind
from planner.training.search import join
from planner.training.space import training_space
from planner.training.space_rules import RULES, divisors, model_limits

NODE = Level(name="node", size=4, bytes_per_s=3e11, latency_s=1e-6, kind=LinkKind.SWITCH)


def _levels(world: int) -> tuple[Level, ...]:
    return (NODE, Level(name="world", size=world, bytes_per_s=2.5e10, latency_s=5e-6, kind=LinkKind.FABRIC))


@pytest.fixture(scope="module")
def dense() -> ModelGraph:
    return transformer_graph(
        name="small", hidden=96, ffn_hidden=384, num_layers=6, num_heads=6, num_kv_heads=2, vocab=1000
    )


@pytest.fixture(scope="module")
def mixture() -> ModelGraph:
    return transformer_graph(
        name="moe", hidden=64, ffn_hidden=128, num_layers=4, num_heads=4, vocab=1000, num_experts=4, top_k=2
    )


def _rows(
    model: ModelGraph,
    world: int,
    *,
    batch: int = 24,
    seq: int = 48,
    stack: str = "megatron-core",
    flash: bool = False,
    allow: dict[str, tuple[int, ...]] | None = None,
    max_rows: int = 1 << 17,
) -> ConfigTable:
    job = TrainingJob(model=model, seq_len=seq, global_batch=batch, stack=stack)
    space = training_space(job, world=world, levels=_levels(world), flash_attention=flash, allow=allow)
    return join(list(space.chunks(max_rows)))


def _interleaves(layers: int, chunks: int) -> bool:
    """Return whether equal chunks hold the layers when up to two layers may be missing, none being empty."""
    return any(
        (layers + missing) % chunks == 0 and (missing == 0 or (layers + missing) // chunks > 1)
        for missing in (0, 1, 2)
    )


def _legal(s: Strategy, batch: int, seq: int, layers: int, heads: int, kv: int) -> bool:
    """The same rules, written one strategy at a time for a dense model."""
    replicas = s.dp * s.cp
    rounds = batch // (s.dp * s.micro_batch)
    group = s.shard_group
    return (
        heads % s.tp == 0
        and (kv % s.tp == 0 or s.tp % kv == 0)
        and 32 % s.tp == 0  # features: queries, keys and values are 160 wide together
        and s.pp <= layers
        and -(-layers // s.pp) * (s.pp - 1) < layers
        and (s.cp == 1 or seq % (2 * s.cp) == 0)
        and batch % (s.dp * s.micro_batch) == 0
        and (s.vpp == 1 or (s.pp > 1 and _interleaves(layers, s.pp * s.vpp) and rounds % s.pp == 0))
        and (not s.sequence_parallel or (s.tp > 1 and seq // s.cp % s.tp == 0))
        and (s.zero == 0 or replicas > 1)
        and (s.zero < 2 or s.pp == 1)
        and (
            group == 0
            or (s.zero > 0 and s.tp * group == NODE.size and 1 < group < replicas and replicas % group == 0)
        )
        and (not s.overlap_tp or (s.sequence_parallel and NODE.size % s.tp == 0))
    )


@pytest.mark.parametrize("world", [1, 4, 6, 8, 12])
def test_the_space_is_exactly_the_legal_strategies(dense: ModelGraph, world: int) -> None:
    batch, seq, layers = 24, 48, 6
    wanted = set()
    degrees = divisors(world)
    for tp, pp, cp in itertools.product(degrees, degrees, degrees):
        if world % (tp * pp * cp):
            continue
        dp = world // (tp * pp * cp)
        for micro, vpp, parallel, recompute, zero, overlap in itertools.product(
            divisors(batch), range(1, layers + 3), (False, True), Recompute, range(4), (False, True)
        ):
            for group in {0, NODE.size // tp}:
                s = Strategy(
                    tp=tp,
                    pp=pp,
                    cp=cp,
                    dp=dp,
                    vpp=vpp,
                    micro_batch=micro,
                    sequence_parallel=parallel,
                    recompute=recompute,
                    zero=zero,
                    shard_group=group,
                    overlap_tp=overlap,
                    overlap_dp=dp * cp > 1,
                    overlap_pp=vpp > 1,
                )
                if _legal(s, batch, seq, layers, heads=6, kv=2):
                    wanted.add(s)
    table = _rows(dense, world, batch=batch, seq=seq)
    found = [table.strategy(i) for i in range(len(table))]
    assert len(found) == len(set(found))
    assert set(found) == wanted


def test_every_row_fills_the_world(mixture: ModelGraph) -> None:
    table = _rows(mixture, 24)
    assert np.all(table.tp * table.pp * table.cp * table.dp == 24)
    assert set(table.ep.tolist()) == {1, 2, 4}


def test_expert_degrees_fill_the_stage_and_need_sequence_parallelism(mixture: ModelGraph) -> None:
    table = _rows(mixture, 16)
    assert np.all(table.tp * table.cp * table.dp % (table.ep * table.etp) == 0)
    assert np.all((table.ep == 1) | (table.tp == 1) | (table.sequence_parallel == 1))
    assert np.all((table.etp == 1) | (table.etp == table.tp))


def test_dense_models_have_no_expert_degrees(dense: ModelGraph) -> None:
    table = _rows(dense, 12)
    assert set(table.ep.tolist()) == set(table.etp.tolist()) == {1}


def test_flash_attention_makes_selective_recomputation_a_duplicate(dense: ModelGraph) -> None:
    assert int(Recompute.SELECTIVE) not in _rows(dense, 4, flash=True).recompute
    assert int(Recompute.SELECTIVE) in _rows(dense, 4).recompute


def test_fsdp_shards_weights_under_a_pipeline(dense: ModelGraph) -> None:
    table = _rows(dense, 4, stack="fsdp2")
    assert np.any((table.pp > 1) & (table.zero == 3))


def test_chunking_changes_nothing(mixture: ModelGraph) -> None:
    whole, pieces = _rows(mixture, 8), _rows(mixture, 8, max_rows=100)
    assert [whole.strategy(i) for i in range(len(whole))] == [pieces.strategy(i) for i in range(len(pieces))]


def test_the_request_narrows_the_space_and_is_counted(dense: ModelGraph) -> None:
    job = TrainingJob(model=dense, seq_len=48, global_batch=24)
    space = training_space(
        job, world=4, levels=_levels(4), flash_attention=True, allow={"tp": (2,), "recompute": (0,)}
    )
    table = join(list(space.chunks()))
    assert set(table.tp.tolist()) == {2}
    assert set(table.recompute.tolist()) == {0}
    assert {e.rule: e.count for e in space.excluded()}["request-allows"] > 0


def test_every_counted_rule_is_documented(mixture: ModelGraph) -> None:
    job = TrainingJob(model=mixture, seq_len=48, global_batch=24)
    space = training_space(job, world=24, levels=_levels(24), flash_attention=True)
    for _ in space.chunks():
        pass
    assert set(space.counts) <= set(RULES)
    assert all(e.why for e in space.excluded())


def test_a_prime_batch_leaves_no_strategy(dense: ModelGraph) -> None:
    job = TrainingJob(model=dense, seq_len=7, global_batch=7)
    space = training_space(job, world=25, levels=_levels(25), flash_attention=True)
    assert list(space.chunks()) == []
    assert "global-batch-divisible" in {e.rule for e in space.excluded()}


def test_limits_of_a_grouped_query_model(dense: ModelGraph) -> None:
    limits = model_limits(dense)
    assert (limits.num_layers, limits.heads, limits.kv_heads, limits.experts) == (6, 6, (2,), 0)
    assert limits.causal


@pytest.mark.parametrize(("number", "wanted"), [(1, [1]), (12, [1, 2, 3, 4, 6, 12]), (13, [1, 13])])
def test_divisors(number: int, wanted: list[int]) -> None:
    assert divisors(number) == wanted
