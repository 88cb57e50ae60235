"""Purchases on offers against hand-worked answers and brute force."""

from dataclasses import replace
from itertools import product
from math import comb

import numpy as np
import pytest

from solvers.gpu_mix import Limit, MixProblem
from solvers.gpu_offer_problem import LoadLevel, MixOffer, OfferProblem, away_at_once, check_offers
from solvers.gpu_offers import solve_most_load_on_offers, solve_offers
from solvers.outcome import Status

DAY = (LoadLevel(rate_frac=1.0, time_frac=0.25), LoadLevel(rate_frac=0.5, time_frac=0.75))


def mix(load, **more):
    load = np.asarray(load, dtype=float)
    return MixProblem(
        item_names=tuple(f"i{k}" for k in range(load.shape[0])),
        bucket_names=tuple(f"b{k}" for k in range(load.shape[1])),
        usd_per_hour=np.ones(load.shape[0]),
        load=load,
        **more,
    )


def offer(name, price, units=(1.0,), **more):
    return MixOffer(name=name, usd_per_hour=price, units=np.array(units, dtype=float), **more)


def away(n, frac, beyond):
    """Return the binomial quantile by its definition."""
    for k in range(n + 1):
        inside = sum(comb(n, j) * frac**j * (1 - frac) ** (n - j) for j in range(k + 1))
        if 1.0 - inside <= beyond:
            return k
    return n


def test_base_load_is_reserved_and_the_peak_bought_on_demand():
    problem = OfferProblem(
        mix=mix([[4.0]]),
        offers=(offer("term", 0.6, committed=True), offer("hourly", 1.0)),
        levels=DAY,
    )
    outcome = solve_offers(problem)
    answer = outcome.unwrap()
    # The upper two instances run a quarter of the time: 0.25 on demand is below 0.6 reserved.
    assert [m.bought.ravel().tolist() for m in answer.levels] == [[2, 2], [2, 0]]
    assert answer.total.tolist() == [2.0, 2.0]
    assert answer.usd_per_hour == pytest.approx(2 * 0.6 + 0.25 * 2 * 1.0)
    assert [m.usd_per_hour for m in answer.levels] == pytest.approx([3.2, 1.2])
    assert outcome.status is Status.OPTIMAL


def test_reserved_beyond_need_is_still_paid():
    problem = OfferProblem(
        mix=mix([[1.5]]), offers=(offer("owned", 0.5, committed=True, min_total=6.0), offer("hourly", 1.0))
    )
    answer = solve_offers(problem).unwrap()
    assert answer.levels[0].bought.ravel().tolist()[1] == 0
    assert answer.usd_per_hour == pytest.approx(3.0)


def test_spot_is_bought_with_what_interruptions_take():
    spot = offer("spot", 0.3, interruptible=True, away_frac=0.05)
    problem = OfferProblem(mix=mix([[9.5]]), offers=(spot, offer("hourly", 1.0)))
    answer = solve_offers(problem).unwrap().levels[0]
    assert answer.count.tolist() == [13]
    assert answer.away.tolist() == [away(13, 0.05, 0.01)] == [3]
    half = solve_offers(replace(problem, max_interruptible_frac=0.5)).unwrap().levels[0]
    assert half.bought[0, 0] <= half.bought[1, 0]
    assert half.count[0] - half.away[0] >= 10


@pytest.mark.parametrize("frac", [0.003, 0.02, 0.3])
@pytest.mark.parametrize("beyond", [0.05, 0.01, 0.001])
def test_away_at_once_is_the_binomial_quantile(frac, beyond):
    counts = np.arange(40)
    assert away_at_once(counts, frac, beyond).tolist() == [away(int(n), frac, beyond) for n in counts]


def test_no_interruptions_count_nothing_out():
    assert away_at_once(np.array([5]), 0.0, 0.01).tolist() == [0]


def carries(left, load):
    """Return whether what is left of two items carries the load: buckets go by their ratio, greedily."""
    room, rest = float(left[0]), 0.0
    for b in np.argsort(load[0] / load[1]):
        part = min(1.0, room / load[0, b])
        room -= part * load[0, b]
        rest += (1.0 - part) * load[1, b]
    return rest <= left[1] + 1e-9


def _least(points):
    """Return the points that no other is below in every coordinate."""
    table = np.array(sorted(set(points)))
    beaten = [((table <= row).all(axis=1) & (table < row).any(axis=1)).any() for row in table]
    return table[~np.array(beaten)]


def cheapest_by_trial(problem, top):
    """Return the least mean cost over all purchases of two items at every level."""
    pairs = [(o, i) for o, of in enumerate(problem.offers) for i in range(2) if of.units[i] > 0]
    fits = []
    for level in problem.levels:
        load = problem.mix.load * level.rate_frac
        good = []
        for counts in product(range(top + 1), repeat=len(pairs)):
            bought = np.zeros((len(problem.offers), 2), dtype=int)
            for (o, i), n in zip(pairs, counts, strict=True):
                bought[o, i] = n
            count = bought.sum(axis=0)
            spot = np.array([o.interruptible for o in problem.offers])
            if (bought[spot].sum(axis=0) > problem.max_interruptible_frac * count + 1e-9).any():
                continue
            lost = sum(
                np.array([away(int(n), o.away_frac, problem.beyond_frac) for n in bought[k]])
                for k, o in enumerate(problem.offers)
                if o.interruptible
            )
            used = np.array([o.units @ b for o, b in zip(problem.offers, bought, strict=True)])
            stocked = all(
                (o.committed or u >= o.min_total) and u <= o.max_total
                for o, u in zip(problem.offers, used, strict=True)
            )
            within = all(limit.per_instance @ count <= limit.total for limit in problem.mix.limits)
            if stocked and within and carries(count - lost, load):
                good.append(tuple(used))
        fits.append((level.time_frac, _least(good)))
    price = np.array([o.usd_per_hour for o in problem.offers])
    term = np.array([o.committed for o in problem.offers])
    floor = np.array([o.min_total for o in problem.offers])
    return min(
        float(
            (price * term) @ np.maximum(np.max(chosen, axis=0), floor)
            + sum(h * ((price * ~term) @ used) for (h, _), used in zip(fits, chosen, strict=True))
        )
        for chosen in product(*(good for _, good in fits))
    )


@pytest.mark.parametrize("seed", range(8))
def test_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    load = rng.uniform(0.2, 1.4, (2, 2))
    units = (1.0, 2.0)
    offers = (
        offer("term", rng.uniform(0.4, 0.8), units, committed=True, min_total=float(seed % 2)),
        offer("hourly", rng.uniform(0.8, 1.2), units, max_total=3.0 if seed % 3 == 0 else np.inf),
        offer("spot", rng.uniform(0.2, 0.5), (1.0, 0.0), interruptible=True, away_frac=0.05),
    )
    limits = (Limit(name="stock", per_instance=np.array([1.0, 0.0]), total=3.0),) if seed % 2 else ()
    problem = OfferProblem(
        mix=mix(load, limits=limits), offers=offers, levels=DAY, max_interruptible_frac=rng.choice([0.5, 1.0])
    )
    outcome = solve_offers(problem)
    assert outcome.status is Status.OPTIMAL
    assert check_offers(problem, outcome.unwrap()) == []
    assert outcome.unwrap().usd_per_hour == pytest.approx(cheapest_by_trial(problem, 3), rel=1e-6)


def test_limits_of_offers_and_budget_are_named_where_they_are_in_the_way():
    scarce = OfferProblem(mix=mix([[4.0]]), offers=(offer("few", 1.0, max_total=2.0),))
    outcome = solve_offers(scarce)
    assert outcome.status is Status.INFEASIBLE
    assert any("few" in row for row in outcome.conflict)
    poor = OfferProblem(mix=mix([[4.0]]), offers=(offer("hourly", 1.0),), budget_usd_per_hour=3.0)
    assert any("budget" in row for row in solve_offers(poor).conflict)
    assert solve_offers(replace(poor, budget_usd_per_hour=4.0)).unwrap().usd_per_hour == pytest.approx(4.0)


def test_a_weight_is_made_least_in_place_of_dollars():
    load = np.array([[2.0], [1.0]])
    offers = (offer("a", 1.0, (1.0, 0.0)), offer("b", 5.0, (0.0, 1.0)))
    assert solve_offers(OfferProblem(mix=mix(load), offers=offers)).unwrap().levels[0].count.tolist() == [
        2,
        0,
    ]
    light = OfferProblem(mix=mix(load, weight=np.array([10.0, 1.0])), offers=offers)
    outcome = solve_offers(light)
    assert outcome.unwrap().levels[0].count.tolist() == [0, 1]
    assert outcome.objective == pytest.approx(1.0)


def test_a_broken_purchase_is_named():
    problem = OfferProblem(mix=mix([[2.0]]), offers=(offer("hourly", 1.0),))
    answer = solve_offers(problem).unwrap()
    wrong = replace(answer, levels=(replace(answer.levels[0], bought=np.array([[1]])),))
    assert any("differ" in words for words in check_offers(problem, wrong))
    tight = replace(problem, offers=(replace(problem.offers[0], max_total=1.0),))
    assert any("outside 0 to 1" in words for words in check_offers(tight, answer))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offers": ()}, "at least one offer"),
        ({"levels": (LoadLevel(rate_frac=1.0, time_frac=0.5),)}, "must be 1"),
        ({"offers": (offer("free", 0.0),)}, "positive price"),
        ({"offers": (offer("hourly", 1.0, min_total=4.0, max_total=2.0),)}, "minimum within"),
    ],
)
def test_a_wrong_problem_is_refused(change, words):
    given = {"mix": mix([[2.0]]), "offers": (offer("hourly", 1.0),)} | change
    with pytest.raises(ValueError, match=words):
        OfferProblem(**given)


def test_the_most_load_within_a_budget_and_stock_then_the_fewest_dollars():
    offers = (offer("few", 0.5, max_total=2.0), offer("hourly", 1.0))
    problem = OfferProblem(mix=mix([[1.0]]), offers=offers, budget_usd_per_hour=4.5)
    outcome, rate = solve_most_load_on_offers(problem)
    assert rate == pytest.approx(5.0, rel=1e-5)
    assert outcome.bound == pytest.approx(5.0, rel=1e-5)
    assert outcome.unwrap().levels[0].bought.ravel().tolist() == [2, 3]
    with pytest.raises(ValueError, match="limit to every count"):
        solve_most_load_on_offers(replace(problem, budget_usd_per_hour=None))
    poor, none = solve_most_load_on_offers(replace(problem, budget_usd_per_hour=0.2))
    assert none == 0.0
    assert "few" in poor.conflict
