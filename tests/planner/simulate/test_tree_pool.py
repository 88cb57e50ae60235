"""Memory shared by requests with a common prefix: counted once, never negative, evicted from the leaves."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.prefix_tree import PrefixTree, tree_of_hashes, tree_of_parents
from costmodels.traces import Trace
from planner.simulate.core import simulate
from planner.simulate.fleet import EngineSpec, Fleet, Pool
from planner.simulate.outcome import summary
from planner.simulate.requests import RequestTable
from planner.simulate.settings import EngineSettings, Preemption, Role
from planner.simulate.tree_pool import TreePool
from tests.planner.simulate.common import TIMER, fleet_of, random_trace, spec, trace_of

PATIENT = EngineSettings(token_budget=256, max_seqs=16)


def alone(trace: Trace) -> Trace:
    """Return the trace with a tree in which nobody shares anything."""
    nobody = np.full(len(trace), -1)
    return replace(trace, tree=tree_of_parents(nobody, trace.prompt_tokens, trace.output_tokens))


def branching(seed: int, count: int, rate: float) -> Trace:
    """Return requests that each continue a random earlier one, or none."""
    rng = np.random.default_rng(seed)
    parent = np.array([int(rng.integers(-1, row)) if row else -1 for row in range(count)])
    prompt, output = np.zeros(count, dtype=np.int64), rng.integers(1, 40, size=count)
    for row, above in enumerate(parent.tolist()):
        before = 0 if above < 0 else int(rng.integers(0, prompt[above] + output[above] + 1))
        prompt[row] = min(before, 600) + rng.integers(1, 120)
    trace = random_trace(seed, count, rate)
    tree = tree_of_parents(parent, prompt, output)
    return replace(trace, prompt_tokens=prompt, output_tokens=output, tree=tree)


def check(pool: TreePool) -> None:
    """Assert that every block is counted once and that nothing cached hangs below what is not."""
    size = {n: pool._last[n] - pool._first[n] for n in pool.resident}
    used = sum(have for n, have in pool.resident.items() if n in pool.users)
    cached = sum(have for n, have in pool.resident.items() if n not in pool.users)
    own = sum(pool.held[r] - pool.shared[r] for r in pool.held)
    assert all(0 < have <= size[n] for n, have in pool.resident.items())
    assert all(0 <= pool.shared[r] <= pool.held[r] for r in pool.held)
    assert cached == pool.cached_blocks <= pool.free_blocks
    # Blocks that decoding requests gained are booked as theirs when they leave.
    assert used + own <= pool.num_blocks - pool.free_blocks <= pool.num_blocks
    table = pool._table
    for path in table.paths:
        full = True
        for node in path:
            have = pool.resident.get(node, 0)
            assert full or not have
            full = full and have == pool._last[node] - pool._first[node]


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the pool after whatever changes it."""
    for name in ("take", "filled", "forget", "grow"):
        plain = getattr(TreePool, name)

        def after(self: TreePool, *args: object, plain=plain, name=name, **more: object) -> object:
            found = plain(self, *args, **more)
            if self.held.keys() == self.shared.keys():
                check(self)
            return found

        monkeypatch.setattr(TreePool, name, after)


@pytest.mark.parametrize("kv_tokens", [1600, 6400, 200_000])
@pytest.mark.parametrize("preemption", list(Preemption))
def test_blocks_are_counted_once_at_any_load(kv_tokens: int, preemption: Preemption, checked: None) -> None:
    engine = spec(kv_tokens=kv_tokens, settings=replace(PATIENT, preemption=preemption))
    raw = simulate(fleet_of(engine), branching(3, 120, 40.0))
    (rank,) = raw.engines[0].ranks
    assert max(raw.table.finish_s) < float("inf")
    assert rank.pool.free_blocks == rank.pool.num_blocks
    assert not rank.pool.held
    assert sum(raw.table.hit_tokens) > 0


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kv_tokens=st.sampled_from([1600, 3200, 12_800]),
    rate=st.sampled_from([5.0, 80.0]),
)
def test_nothing_is_lost_whatever_branches(seed: int, kv_tokens: int, rate: float) -> None:
    raw = simulate(fleet_of(spec(kv_tokens=kv_tokens, settings=PATIENT), count=2), branching(seed, 60, rate))
    for engine in raw.engines:
        pool = engine.ranks[0].pool
        assert isinstance(pool, TreePool)
        check(pool)
        assert pool.free_blocks == pool.num_blocks
        assert not pool.users


@pytest.mark.parametrize("kv_tokens", [1600, 100_000])
def test_without_sharing_nothing_changes(kv_tokens: int) -> None:
    trace = random_trace(5, 200, 30.0)
    fleet = fleet_of(spec(kv_tokens=kv_tokens, settings=PATIENT))
    plain, tree = simulate(fleet, trace), simulate(fleet, alone(trace))
    assert tree.table.finish_s == plain.table.finish_s
    assert tree.table.preemptions == plain.table.preemptions
    assert tree.engines[0].logs == plain.engines[0].logs


def test_turns_one_after_the_other_are_as_a_session() -> None:
    rows = [(0.0, 100, 20), (5.0, 150, 10), (10.0, 400, 30), (12.0, 90, 5)]
    session = simulate(fleet_of(spec()), trace_of(rows, session=[1, 1, 1, -1]))
    trace = trace_of(rows)
    tree = tree_of_parents(np.array([-1, 0, 1, -1]), trace.prompt_tokens, trace.output_tokens)
    raw = simulate(fleet_of(spec()), replace(trace, tree=tree))
    assert raw.table.hit_tokens == session.table.hit_tokens == [0, 112, 144, 0]
    assert raw.table.finish_s == session.table.finish_s


def forked(prompts: list[int], at: list[float]) -> Trace:
    """Return prompts that have their first 512 tokens in common."""
    trace = trace_of([(t, p, 8) for t, p in zip(at, prompts, strict=True)])
    hashes = [[0] if p <= 512 else [0, row] for row, p in enumerate(prompts, start=1)]
    return replace(trace, tree=tree_of_hashes(hashes, 512, trace.prompt_tokens, trace.output_tokens))


def test_branches_share_one_copy_while_they_run() -> None:
    trace = forked([700, 700, 700], [0.0, 0.2, 0.2])
    settings = EngineSettings(token_budget=2048, max_seqs=8)
    raw = simulate(fleet_of(spec(settings=settings)), trace)
    # One holds 44 blocks of prompt; each of the others adds the 12 behind the 32 in common.
    peak = max(raw.engines[0].logs[0][5::9])
    assert raw.table.hit_tokens == [0, 512, 512]
    assert peak <= 44 + 12 + 12 + 3
    assert summary(raw)["prefix_hit_frac"] == pytest.approx(1024 / 2100)


def test_memory_for_one_serves_many_that_share() -> None:
    trace = forked([700] * 6, [0.0, *[0.2] * 5])
    tight = spec(kv_tokens=16 * 120, settings=EngineSettings(token_budget=2048, max_seqs=8))
    shared = simulate(fleet_of(tight), trace)
    apart = simulate(fleet_of(tight), replace(trace, tree=None))
    assert max(shared.table.finish_s) < max(apart.table.finish_s)
    assert max(shared.engines[0].logs[0][3::9]) > max(apart.engines[0].logs[0][3::9])


def test_a_prompt_of_the_same_iteration_shares_what_is_computed_in_it() -> None:
    raw = simulate(
        fleet_of(spec(settings=EngineSettings(token_budget=2048, max_seqs=8))), forked([700, 700], [0.0, 0.0])
    )
    assert raw.table.hit_tokens == [0, 512]


def pool_of(tree: PrefixTree, prompts: list[int], blocks: int) -> TreePool:
    table = RequestTable(replace(trace_of([(0.0, p, 1) for p in prompts]), tree=tree))
    return TreePool(EngineSettings(), blocks * 16, table, Role.BOTH)


def test_leaves_are_evicted_before_what_they_hang_on() -> None:
    # 0: blocks 0 to 31 and 32 to 43; 1: the same 32, then 12 others.
    trace = forked([704, 704], [0.0, 0.0])
    assert trace.tree is not None
    pool = pool_of(trace.tree, [704, 704], 64)
    for request in (0, 1):
        hit = pool.hit_blocks(request, 704)
        assert hit == (0, 32)[request]
        assert pool.take(request, 704, hit, ahead=0, alone=True)
        pool.release(request, cached_tokens=704)
        check(pool)
    assert pool.cached_blocks == 32 + 12 + 12
    pool.grow(64 - 50)
    check(pool)
    # Six blocks had to go: the end of the branch that was used first.
    assert pool.hit_blocks(0, 704) == 38
    assert pool.hit_blocks(1, 704) == 43
    pool.grow(20)
    assert pool.hit_blocks(0, 704) == pool.hit_blocks(1, 704) == 30
    check(pool)


def test_the_prefix_router_sends_branches_where_their_prefix_is() -> None:
    trace = branching(11, 200, 10.0)
    fleet = fleet_of(spec(kv_tokens=40_000, settings=PATIENT), count=4)
    near = simulate(replace(fleet, router="prefix"), trace)
    far = simulate(replace(fleet, router="random"), trace)
    assert sum(near.table.hit_tokens) > 1.2 * sum(far.table.hit_tokens)


def test_split_phases_and_failures_conserve_with_a_tree() -> None:
    prefill = EngineSpec(timer=TIMER, kv_tokens=6400, settings=PATIENT, role=Role.PREFILL)
    decode = EngineSpec(timer=TIMER, kv_tokens=6400, settings=PATIENT, role=Role.DECODE)
    fleet = Fleet(
        pools=(Pool(name="p", engine=prefill, count=2), Pool(name="d", engine=decode, count=1)),
        mean_time_between_failures_s=3.0,
        repair_s=0.5,
    )
    raw = simulate(fleet, branching(2, 100, 20.0))
    assert max(raw.table.finish_s) < float("inf")
    for engine in raw.engines:
        pool = engine.ranks[0].pool
        assert isinstance(pool, TreePool)
        check(pool)
        assert pool.free_blocks == pool.num_blocks
