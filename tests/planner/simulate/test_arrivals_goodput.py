from dataclasses import replace

import numpy as np
import pytest

from costmodels.job import Slo, Traffic
from hardware.errors import InputError
from planner.simulate.arrivals import fit_bursts, gamma_gaps, make_trace, sessions_trace, weibull_gaps
from planner.simulate.core import simulate, simulate_unless
from planner.simulate.goodput import check_all, find_goodput, meets, replicate
from planner.simulate.outcome import Measurement, latencies, summary
from planner.simulate.rate_bound import rate_bound_per_s
from planner.simulate.settings import EngineSettings
from tests.planner.simulate.common import fleet_of, random_trace, spec

TRAFFIC = Traffic(rate_per_s=20.0, prompt_tokens=(50, 200), output_tokens=(5, 40), share_frac=(0.75, 0.25))
SLO = Slo(ttft_s=0.5, tpot_s=0.05, percentile=90)


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 3.0])
def test_gamma_gaps_have_mean_one_and_the_variation_asked_for(cv: float) -> None:
    gaps = gamma_gaps(40_000, cv=cv, seed=1)
    assert gaps.mean() == pytest.approx(1.0, rel=0.05)
    assert gaps.std() == pytest.approx(cv, rel=0.1, abs=1e-12)


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0, 5.0])
def test_weibull_gaps_have_mean_one_and_the_variation_asked_for(cv: float) -> None:
    gaps = weibull_gaps(400_000, cv=cv, seed=1)
    assert gaps.mean() == pytest.approx(1.0, rel=0.03)
    assert gaps.std() == pytest.approx(cv, rel=0.06)


def test_bursts_of_weibull_gaps_hold_fewer_requests_of_one_instant_than_those_of_gamma_gaps() -> None:
    bursty = replace(TRAFFIC, arrival_cv=13.0)
    spread = {}
    for law in (None, "weibull", "gamma"):
        arrival_s = make_trace(bursty, num_requests=50_000, seed=2, law=law).arrival_s
        counts = np.bincount((arrival_s * TRAFFIC.rate_per_s / 2.5).astype(int))
        spread[law] = counts.var() / counts.mean()
    assert spread[None] == spread["weibull"]
    assert 3.0 * spread["weibull"] < spread["gamma"]


def test_made_traces_share_their_random_numbers() -> None:
    slow = make_trace(TRAFFIC, num_requests=500, seed=3)
    fast = make_trace(
        Traffic(**{f: getattr(TRAFFIC, f) for f in TRAFFIC.__slots__} | {"rate_per_s": 40.0}),
        num_requests=500,
        seed=3,
    )
    assert slow.rate_per_s == pytest.approx(20.0)
    assert np.array_equal(slow.prompt_tokens, fast.prompt_tokens)
    assert np.allclose(slow.arrival_s, 2 * fast.arrival_s)
    assert (slow.prompt_tokens == 50).mean() == pytest.approx(0.75, abs=0.06)


def test_fitted_bursts_keep_rate_and_variation() -> None:
    rng = np.random.default_rng(0)
    rates = np.repeat(rng.choice([2.0, 30.0], size=200), 10)
    counts = rng.poisson(rates)
    arrival = np.sort(np.concatenate([i + rng.random(c) for i, c in enumerate(counts)]))
    base = random_trace(0, len(arrival), 1.0)
    trace = type(base)(arrival_s=arrival, prompt_tokens=base.prompt_tokens, output_tokens=base.output_tokens)
    model = fit_bursts(trace)
    gaps = model.gaps(len(arrival), seed=1)
    assert 1 / gaps.mean() == pytest.approx(trace.rate_per_s, rel=0.25)
    assert gaps.std() / gaps.mean() == pytest.approx(trace.arrival_cv, rel=0.3)
    with pytest.raises(InputError, match="too short"):
        fit_bursts(trace.head(20))


def test_sessions_grow_and_hit_the_cache() -> None:
    trace = sessions_trace(TRAFFIC, num_sessions=30, mean_turns=4.0, think_s=5.0, seed=2)
    assert trace.session is not None
    raw = simulate(fleet_of(spec()), trace)
    assert summary(raw)["prefix_hit_frac"] > 0.3


def test_goodput_is_bracketed_and_below_the_bound() -> None:
    fleet, trace = fleet_of(spec(settings=EngineSettings(max_seqs=64))), random_trace(1, 600, 10.0)
    found = find_goodput(fleet, trace, SLO)
    assert 0 < found.rate_per_s < found.failed_per_s <= rate_bound_per_s(fleet, trace) * 1.0001
    assert meets(fleet, trace.scaled(found.rate_per_s), SLO)[0]
    assert not meets(fleet, trace.scaled(found.failed_per_s), SLO)[0]
    assert found.failed_per_s <= 1.011 * found.rate_per_s


def test_targets_that_nothing_meets_give_no_rate() -> None:
    found = find_goodput(fleet_of(spec()), random_trace(1, 100, 10.0), Slo(ttft_s=1e-4))
    assert found.rate_per_s == 0.0


def test_giving_up_early_agrees_with_the_whole_run() -> None:
    fleet, trace = fleet_of(spec(settings=EngineSettings(max_seqs=8))), random_trace(2, 1500, 40.0)
    kept, _ = meets(fleet, trace, SLO)
    rule = Measurement(warm_up_s=0.1 * trace.span_s)
    whole = latencies(simulate(fleet, trace), rule)
    assert kept == (np.percentile(whole.ttft_s, 90) <= 0.5)
    assert not kept


def test_a_run_without_logs_is_the_same_run() -> None:
    fleet, trace = fleet_of(spec(kv_tokens=3000), 2), random_trace(4, 300, 30.0)
    whole = simulate(fleet, trace)
    bare = simulate_unless(fleet, trace, lambda *_: False, logged=False)
    assert bare is not None
    assert not any(len(log) for engine in bare.engines for log in engine.logs)
    for name in ("start_s", "first_s", "finish_s", "preemptions", "engine"):
        assert getattr(bare.table, name) == getattr(whole.table, name)
    assert np.isnan(latencies(bare).itl_s).all()
    assert (latencies(bare).e2e_s == latencies(whole).e2e_s).all()


def test_many_fleets_at_once_equal_one_by_one() -> None:
    trace = random_trace(3, 300, 20.0)
    jobs = [(fleet_of(spec(), n), trace.scaled(rate)) for n in (1, 2) for rate in (10.0, 60.0, 1e5)]
    together = check_all(jobs, SLO, num_jobs=1)
    assert together[2] == together[5] == (False, 0.0)
    assert together[:2] == [meets(fleet, t, SLO) for fleet, t in jobs[:2]]


def test_replications_give_an_interval() -> None:
    # Mean 2, standard deviation 1, Student's t of two degrees of freedom: 4.3027 / sqrt(3).
    found = replicate(lambda seed: {"x": float(seed)}, seeds=[1, 2, 3], num_jobs=1)["x"]
    assert (found.mean, found.num_replications) == (2.0, 3)
    assert found.high - found.mean == found.mean - found.low == pytest.approx(2.4841, abs=1e-4)
    with pytest.raises(InputError, match="two replications"):
        replicate(lambda seed: {"x": 1.0}, seeds=[1])


def test_replications_of_a_simulation_differ_by_their_seed() -> None:
    def run(seed: int) -> dict[str, float]:
        trace = make_trace(TRAFFIC, num_requests=60, seed=seed)
        return {"e2e_s": float(latencies(simulate(fleet_of(spec()), trace)).e2e_s.mean())}

    found = replicate(run, seeds=range(4), num_jobs=1)["e2e_s"]
    assert found.low < found.mean < found.high
