from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.errors import InfeasibleError, SpecError
from planner.simulate.core import Raw, simulate
from planner.simulate.fleet import Failure, Fleet, Link, Pool, Reactive, ScheduledCount
from planner.simulate.outcome import latencies, summary, timeline
from planner.simulate.rate_bound import rate_bound_per_s
from planner.simulate.settings import POLICIES, Batching, EngineSettings, Preemption, Role, Speculation
from tests.planner.simulate.common import fleet_of, random_trace, spec, trace_of


def check_conserved(raw: Raw) -> None:
    """Every request ends once, in order of its own events; no engine holds more than it has."""
    table, trace = raw.table, raw.trace
    assert all(left == 0 for left in table.left_tokens)
    first, finish = np.array(table.first_s), np.array(table.finish_s)
    assert np.isfinite(finish).all()
    assert (first > trace.arrival_s).all()
    assert (finish >= first).all()
    for number, engine in enumerate(raw.engines):
        for rank, log in zip(engine.ranks, engine.logs, strict=True):
            rows = np.array(log).reshape(-1, 9)
            assert (rows[:, 5] <= rank.pool.num_blocks).all(), number
            assert (rows[:, 1] >= rows[:, 0]).all()
            assert (rows[1:, 0] >= rows[:-1, 1] - 1e-9).all()
            assert rank.pool.free_blocks == rank.pool.num_blocks
            assert rank.outstanding == 0


def produced_tokens(raw: Raw) -> float:
    """Tokens that the logs account for: one per sequence and tick, and one per finished prompt."""
    logs = [np.array(log).reshape(-1, 9) for engine in raw.engines for log in engine.logs]
    return sum(float((rows[:, 2] * rows[:, 3]).sum()) for rows in logs)


def test_one_request_by_hand() -> None:
    raw = simulate(fleet_of(spec()), trace_of([(1.0, 100, 3)]))
    # Prompt: 10 ms + 100 x 0.1 ms. Decodes: 10 ms + 0.1 ms + 101 us, then 102 us.
    assert raw.table.first_s[0] == pytest.approx(1.02)
    assert raw.table.finish_s[0] == pytest.approx(1.02 + 2 * 0.0101 + 203e-6)


def test_a_request_that_arrives_in_a_run_joins_at_the_next_boundary() -> None:
    raw = simulate(fleet_of(spec()), trace_of([(0.0, 100, 100), (0.5, 50, 2)]))
    start = raw.table.start_s[1]
    assert 0.5 <= start < 0.5 + 0.0104
    # Beside the prompt, the first request still gets its token.
    alone = simulate(fleet_of(spec()), trace_of([(0.0, 100, 100)]))
    assert raw.table.finish_s[0] > alone.table.finish_s[0]


def test_an_engine_that_runs_ahead_takes_a_request_one_iteration_later() -> None:
    trace = trace_of([(0.0, 100, 100), (0.5, 50, 2), (0.9, 50, 2)])
    ahead = spec(settings=EngineSettings(run_ahead=True))
    found = [simulate(fleet_of(engine), trace).table for engine in (spec(), ahead)]
    assert found[0].start_s[0] == found[1].start_s[0] == 0.0  # Idle, there is nothing to wait for.
    boundary, waited = found[0].start_s[1], found[1].start_s[1]
    # One decode of 0.01 s + 0.1 ms + about 150 cached tokens of 1 us.
    assert waited - boundary == pytest.approx(0.0101 + 150e-6, abs=5e-6)
    assert found[1].first_s[1] - waited == pytest.approx(found[0].first_s[1] - boundary, abs=2e-6)


def test_an_engine_that_runs_ahead_gets_memory_back_one_iteration_later() -> None:
    # Two requests fill the cache; the third can start once the first has gone.
    trace = trace_of([(0.0, 150, 5), (0.0, 150, 40), (0.001, 150, 5)])
    starts = []
    for run_ahead in (False, True):
        engine = spec(settings=EngineSettings(run_ahead=run_ahead), kv_tokens=24 * 16)
        table = simulate(fleet_of(engine), trace).table
        assert table.start_s[2] >= table.finish_s[0]
        starts.append(table.start_s[2] - table.finish_s[0])
    assert starts[0] == 0.0
    assert starts[1] == pytest.approx(0.0101 + 150e-6, abs=10e-6)


@pytest.mark.parametrize("run_ahead", [False, True])
def test_skipping_ahead_equals_stepping(run_ahead: bool) -> None:
    trace = trace_of([(0.0, 100, 40), (0.001, 200, 25)])
    raw = simulate(fleet_of(spec(settings=EngineSettings(run_ahead=run_ahead))), trace)
    rows = np.array(raw.engines[0].logs[0]).reshape(-1, 9)
    assert rows[:, 2].max() > 10
    # Step by step, by hand, after both prompts are in: tokens in cache per tick.
    now = rows[rows[:, 2] > 1][0, 0]
    kv, left = {}, {}
    for row in (0, 1):
        # The first request decodes until the second joins: once, or twice if the engine runs ahead.
        decoded = (1 + run_ahead) if row == 0 else 0
        kv[row] = trace.prompt_tokens[row] + decoded
        left[row] = raw.trace.output_tokens[row] - 1 - decoded
    while left:
        now += 0.01 + 1e-6 * (sum(kv.values()) + len(kv)) + 1e-4 * len(kv)
        for row in list(left):
            kv[row] += 1
            left[row] -= 1
            if left[row] == 0:
                assert raw.table.finish_s[row] == pytest.approx(now, rel=1e-9)
                del left[row], kv[row]


POLICY_CASES = {
    **POLICIES,
    "small-budget": EngineSettings(token_budget=64, max_seqs=16),
    "long-prefill": EngineSettings(long_prefill_tokens=100),
    "swap": EngineSettings(preemption=Preemption.SWAP),
    "speculation": EngineSettings(speculation=Speculation(num_tokens=3, acceptance_frac=0.7)),
    "watermark": EngineSettings(watermark_frac=0.05, prefix_caching=False),
}


@pytest.mark.parametrize("name", POLICY_CASES)
@pytest.mark.parametrize("kv_tokens", [1600, 100_000])
def test_every_policy_conserves_requests_and_memory(name: str, kv_tokens: int) -> None:
    engine = spec(
        settings=POLICY_CASES[name], kv_tokens=kv_tokens, kv_bytes_per_token=1e5, host_bytes_per_s=2e10
    )
    raw = simulate(fleet_of(engine), random_trace(3, 120, 15.0))
    check_conserved(raw)
    if kv_tokens == 1600 and name in ("vllm", "swap", "small-budget"):
        assert sum(raw.table.preemptions) > 0


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rate=st.floats(1.0, 200.0),
    blocks=st.integers(40, 400),
    batching=st.sampled_from(list(Batching)),
    max_seqs=st.integers(1, 64),
    run_ahead=st.booleans(),
)
def test_nothing_is_lost_at_any_load(
    seed: int, rate: float, blocks: int, batching: Batching, max_seqs: int, run_ahead: bool
) -> None:
    engine = spec(
        settings=EngineSettings(batching=batching, max_seqs=max_seqs, token_budget=512, run_ahead=run_ahead),
        kv_tokens=16 * blocks,
    )
    fleet = fleet_of(engine)
    trace = random_trace(seed, 60, rate)
    raw = simulate(fleet, trace)
    check_conserved(raw)
    if not sum(raw.table.preemptions):
        decoded = int((trace.output_tokens - 1).sum())
        assert produced_tokens(raw) == pytest.approx(decoded)


@pytest.mark.parametrize("seed", range(4))
def test_throughput_never_passes_the_bound(seed: int) -> None:
    fleet = fleet_of(spec(settings=EngineSettings(max_seqs=32)))
    trace = random_trace(seed, 300, 1000.0)
    raw = simulate(fleet, trace)
    assert len(trace) / (raw.end_s - trace.arrival_s[0]) <= rate_bound_per_s(fleet, trace)


@pytest.mark.parametrize("router", ["round-robin", "least-outstanding", "vllm", "least-kv", "random"])
def test_more_replicas_are_never_worse_under_common_random_numbers(router: str) -> None:
    trace = random_trace(5, 200, 20.0)
    means = []
    for count in (1, 2, 4, 8):
        raw = simulate(fleet_of(spec(), count, router=router), trace, seed=1)
        check_conserved(raw)
        means.append(float(latencies(raw).e2e_s.mean()))
    assert means == sorted(means, reverse=True)


def test_same_seed_same_answer_and_other_seed_other_routes() -> None:
    trace = random_trace(2, 200, 30.0)
    fleet = fleet_of(spec(), 3, router="random")
    first, again, other = (summary(simulate(fleet, trace, seed=s)) for s in (1, 1, 2))
    assert first == again
    assert first != other


def split_fleet(**changes: object) -> Fleet:
    engine = spec(settings=EngineSettings(prefix_caching=False), kv_bytes_per_token=1e5, link_bytes_per_s=1e9)
    return Fleet(
        pools=(
            Pool(name="p", engine=replace(engine, role=Role.PREFILL), count=2),
            Pool(name="d", engine=replace(engine, role=Role.DECODE, kv_tokens=4800), count=2),
        ),
        **changes,
    )


def test_split_phases_wait_for_the_cache_on_its_link() -> None:
    raw = simulate(split_fleet(), trace_of([(0.0, 100, 3)]))
    # Prompt 20 ms, 100 tokens x 1e5 B over 1e9 B/s = 10 ms, then two decodes.
    assert raw.table.first_s[0] == pytest.approx(0.02)
    assert raw.table.finish_s[0] == pytest.approx(0.03 + 2 * 0.0101 + 203e-6)
    assert raw.transfer_s == pytest.approx(0.01)
    assert latencies(raw).itl_s[0] == pytest.approx(0.01 + 0.010201, rel=0.6)


def test_split_phases_conserve_with_full_decode_memory_and_a_shared_link() -> None:
    raw = simulate(split_fleet(shared_link=Link(bytes_per_s=2e9, latency_s=1e-3)), random_trace(1, 200, 60.0))
    check_conserved(raw)
    assert raw.num_transfers >= 190


def test_lanes_of_a_pipeline_and_ranks_in_lockstep_conserve() -> None:
    trace = random_trace(4, 150, 40.0)
    for engine in (spec(num_lanes=2), spec(num_ranks=2, kv_tokens=3200)):
        raw = simulate(fleet_of(engine), trace)
        check_conserved(raw)


def test_lockstep_is_as_slow_as_its_slowest_rank() -> None:
    raw = simulate(fleet_of(spec(num_ranks=2)), trace_of([(0.0, 100, 5), (0.0, 1000, 5)]))
    assert raw.table.first_s[0] == raw.table.first_s[1] == pytest.approx(0.11)


def test_requests_of_one_instant_share_an_iteration() -> None:
    raw = simulate(fleet_of(spec()), trace_of([(0.0, 100, 2), (0.0, 300, 2)]))
    assert raw.table.first_s == [pytest.approx(0.05)] * 2


def test_sessions_reuse_their_prefix() -> None:
    trace = trace_of([(0.0, 160, 33), (5.0, 400, 2)], session=[7, 7])
    raw = simulate(fleet_of(spec()), trace)
    # The first turn left 160 + 32 tokens in cache: twelve blocks of 16.
    assert raw.table.hit_tokens == [0, 192]
    assert raw.table.first_s[1] - 5.0 == pytest.approx(0.01 + 208 * 1e-4)


def test_stated_prefixes_count_wherever_the_request_runs() -> None:
    raw = simulate(fleet_of(spec()), trace_of([(0.0, 160, 2)], prefix_tokens=[100]))
    assert raw.table.hit_tokens == [96]


def test_failure_restarts_requests_elsewhere_and_loses_none() -> None:
    trace = random_trace(6, 150, 30.0)
    failures = (Failure(pool="a", engine=0, at_s=2.0, down_s=1.0),)
    raw = simulate(fleet_of(spec(), 2, failures=failures), trace)
    check_conserved(raw)
    assert sum(raw.table.restarts) > 0
    split = replace(split_fleet(), failures=(Failure(pool="d", engine=1, at_s=1.0, down_s=0.5),))
    raw = simulate(split, trace)
    check_conserved(raw)
    drawn = replace(split_fleet(), mean_time_between_failures_s=2.0, repair_s=0.5)
    check_conserved(simulate(drawn, trace))


def test_a_failure_of_no_engine_is_refused() -> None:
    failures = (Failure(pool="b", engine=0, at_s=2.0, down_s=1.0),)
    with pytest.raises(SpecError, match="no engine 0 of pool 'b'"):
        simulate(fleet_of(spec(), failures=failures), trace_of([(0.0, 1, 1)]))


def test_scaling_by_schedule_and_by_load_pays_for_what_is_on() -> None:
    trace = random_trace(7, 300, 60.0)
    base = fleet_of(spec(usd_per_hour=3600.0), 1)
    up = replace(base.pools[0], schedule=(ScheduledCount(at_s=1.0, count=3),), start_up_s=0.5)
    scheduled = simulate(Fleet(pools=(up,)), trace)
    check_conserved(scheduled)
    cost = summary(scheduled)["cost_usd"]
    span = scheduled.end_s - trace.arrival_s[0]
    assert cost == pytest.approx(span + 2 * (span - 1.0))
    assert summary(scheduled)["pools"][0]["mean_engines_on"] == pytest.approx(cost / span)
    rule = Reactive(interval_s=0.2, add_above=8.0, remove_below=1.0)
    reactive = replace(base.pools[0], reactive=rule, max_count=4, start_up_s=0.3)
    raw = simulate(Fleet(pools=(reactive,)), trace)
    check_conserved(raw)
    assert latencies(raw).e2e_s.mean() < latencies(simulate(base, trace)).e2e_s.mean()


def test_size_router_follows_the_shares() -> None:
    small = Pool(name="small", engine=spec(kv_tokens=8000), count=1)
    large = Pool(name="large", engine=spec(), count=1)
    shares = ((100, 1000, (1.0, 0.0)), (1000, 1000, (0.25, 0.75)))
    fleet = Fleet(pools=(small, large), router="size", shares=shares)
    rows = [(0.1 * i, 50 if i % 2 else 500, 4) for i in range(80)]
    raw = simulate(fleet, trace_of(rows))
    engines = np.array(raw.table.engine)
    assert (engines[1::2] == 0).all()
    assert (engines[0::2] == 0).sum() == 10


def test_requests_that_fit_nowhere_are_refused() -> None:
    with pytest.raises(InfeasibleError, match="1 requests fit in no engine"):
        simulate(fleet_of(spec(kv_tokens=160)), trace_of([(0.0, 200, 2)]))


def test_speculation_takes_fewer_steps() -> None:
    trace = trace_of([(0.0, 10, 2000)])
    speculation = Speculation(num_tokens=3, acceptance_frac=0.8)
    raw = simulate(fleet_of(spec(settings=EngineSettings(speculation=speculation))), trace)
    steps = np.array(raw.engines[0].logs[0]).reshape(-1, 9)[:, 2].sum()
    assert 1999 / steps == pytest.approx(speculation.tokens_per_step, rel=0.06)
    check_conserved(raw)


def test_timeline_accounts_for_all_busy_time() -> None:
    raw = simulate(fleet_of(spec()), random_trace(1, 50, 5.0))
    series = timeline(raw, num_points=50)["pools"]["a"]
    busy = summary(raw)["pools"][0]["busy_frac"]
    assert np.mean(series["busy_frac"]) == pytest.approx(busy, rel=1e-6)
