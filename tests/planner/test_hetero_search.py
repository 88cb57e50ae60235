from itertools import product

import numpy as np
import pytest

from costmodels.training.hetero import HeteroModel, HeteroPlan, HeteroStage, MemoryTerms, hetero_cost
from costmodels.training.layer_profiles import LayerProfile, LayerTable, LinkCurve
from planner.training.hetero_search import HeteroFleet, best_hetero_plan
from solvers.outcome import Status

LINK = LinkCurve(coefficients=(0.0, 0.0, 5.0), peak_bytes_per_s=5e9)


def model(slow=2.5, constant_bytes=1e9):
    def profile(device, layer_s):
        times = {(1, tp): np.full(6, layer_s / tp**0.9) for tp in (1, 2)}
        return LayerProfile(device=device, layer_s=times, update_s={k: np.full(6, 1e-3) for k in times})

    layers = LayerTable(
        num_params=np.full(6, 1e8),
        activation_bytes=np.full(6, 1e9),
        output_bytes=np.full(6, 1e7),
        residual_bytes=1e7,
    )
    pairs = list(product(("fast", "slow"), repeat=2))
    return HeteroModel(
        layers=layers,
        profiles={"fast": profile("fast", 0.1), "slow": profile("slow", 0.1 * slow)},
        pair_links=dict.fromkeys(pairs, LINK),
        host_links={(*pair, tp): LINK for pair in pairs for tp in (1, 2)},
        memory=MemoryTerms(bytes_per_param=16.0, residual_tensors=1.0, constant_bytes=constant_bytes),
    )


def fleet(fast, slow, limit=16e9, batch=16):
    return HeteroFleet(
        num_devices={"fast": fast, "slow": slow},
        limit_bytes={"fast": limit, "slow": limit},
        global_batch=batch,
    )


def brute_force(given, known):
    """Return the best step over pure stages of the two types, all splits and all orders."""
    best = np.inf
    seats = [(d, tp) for d in ("fast", "slow") for tp in (1, 2)]
    for num_stages in (1, 2):
        for choice in product(seats, repeat=num_stages):
            for dp in (1, 2, 4):
                used = {d: sum(tp * dp for e, tp in choice if e == d) for d in ("fast", "slow")}
                if any(used[d] > given.num_devices[d] for d in used):
                    continue
                for cut in range(1, 6) if num_stages == 2 else (6,):
                    counts = (cut, 6 - cut) if num_stages == 2 else (6,)
                    stages = tuple(
                        HeteroStage(num_layers=n, replicas=(s,) * dp)
                        for n, s in zip(counts, choice, strict=True)
                    )
                    plan = HeteroPlan(stages=stages, micro_batch=1, global_batch=given.global_batch)
                    cost = hetero_cost(plan, known)
                    if all(
                        b <= given.limit_bytes[s[0]] for b, s in zip(cost.stage_bytes, choice, strict=True)
                    ):
                        best = min(best, cost.step_s)
    return best


@pytest.mark.parametrize(("fast", "slow"), [(2, 2), (4, 2), (2, 4)])
def test_search_is_no_worse_than_brute_force_over_few_stages(fast, slow):
    given, known = fleet(fast, slow), model()
    outcome = best_hetero_plan(given, known, rel_gap=0.0)
    plan = outcome.unwrap()
    assert outcome.objective <= brute_force(given, known) * (1 + 1e-9)
    assert outcome.bound <= outcome.objective
    assert all(plan.num_devices.get(d, 0) <= n for d, n in given.num_devices.items())
    assert sum(s.num_layers for s in plan.stages) == 6


def test_the_faster_type_takes_more_layers():
    plan = best_hetero_plan(fleet(1, 1), model(slow=2.0), rel_gap=0.0).unwrap()
    layers = {s.replicas[0][0]: s.num_layers for s in plan.stages}
    assert layers == {"fast": 4, "slow": 2}


def test_memory_decides_what_fits():
    outcome = best_hetero_plan(fleet(2, 2, limit=1.5e9), model(constant_bytes=1.4e9))
    assert outcome.status is Status.INFEASIBLE
    assert outcome.solution is None


def test_more_devices_are_never_slower():
    known = model()
    few = best_hetero_plan(fleet(2, 2), known, rel_gap=0.0).objective
    many = best_hetero_plan(fleet(4, 4), known, rel_gap=0.0).objective
    assert many <= few + 1e-12
