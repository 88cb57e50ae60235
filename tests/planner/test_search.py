import numpy as np
import pytest

from costmodels.graph_import.transformer import transformer_graph
from costmodels.job import TrainingJob
from costmodels.strategy import ConfigTable, Recompute, Strategy
from costmodels.training.evaluate import evaluate
from hardware.catalog import find_cluster
from hardware.cluster import Cluster
from planner.training.memory_fit import memory_of
from planner.training.ranks import default_placement, rank_coordinates
from planner.training.search import join, search_space
from planner.training.space import training_space


@pytest.fixture(scope="module")
def job() -> TrainingJob:
    model = transformer_graph(
        name="m", hidden=4096, ffn_hidden=16384, num_layers=12, num_heads=32, vocab=50304
    )
    return TrainingJob(model=model, seq_len=4096, global_batch=16)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return find_cluster("dgx-a100-40gb", 1)


def _costed(job: TrainingJob, cluster: Cluster) -> tuple[ConfigTable, np.ndarray, np.ndarray]:
    """Return every strategy, with every number of recomputed layers, its time and whether it fits."""
    space = training_space(job, world=8, levels=cluster.levels, flash_attention=True)
    table = join(list(space.chunks()))
    more = []
    for row in np.flatnonzero(table.recompute == Recompute.FULL):
        s = table.strategy(int(row))
        layers = -(-job.model.num_layers // s.pp)
        more += [
            Strategy(**{f: getattr(s, f) for f in s.__slots__} | {"recompute_layers": n})
            for n in range(1, layers)
        ]
    whole = join([table, ConfigTable.from_strategies(more)])
    costs = evaluate(job, cluster, whole)
    return whole, costs.step_s, costs.fits_probability >= 0.99


def test_the_best_of_every_strategy_and_every_number_of_layers(job: TrainingJob, cluster: Cluster) -> None:
    whole, step_s, fits = _costed(job, cluster)
    space = training_space(job, world=8, levels=cluster.levels, flash_attention=True)
    found = search_space(
        space,
        memory=memory_of(job, cluster),
        evaluate=lambda configs: evaluate(job, cluster, configs),
        top=1,
        min_probability=0.99,
    )
    assert not fits.all()
    best = evaluate(job, cluster, found.best).step_s[0]
    assert best == pytest.approx(step_s[fits].min(), rel=1e-12)
    assert found.num_feasible >= np.count_nonzero(fits & (whole.recompute_layers == 0))


def test_the_front_is_not_dominated(job: TrainingJob, cluster: Cluster) -> None:
    _, step_s, fits = _costed(job, cluster)
    space = training_space(job, world=8, levels=cluster.levels, flash_attention=True)
    found = search_space(
        space,
        memory=memory_of(job, cluster),
        evaluate=lambda configs: evaluate(job, cluster, configs),
        top=3,
        min_probability=0.99,
    )
    costs = evaluate(job, cluster, found.front)
    assert np.all(np.diff(costs.step_s) > 0)
    assert np.all(np.diff(costs.peak_memory_bytes) < 0)
    assert costs.step_s[0] == pytest.approx(step_s[fits].min())


def test_memory_first_agrees_with_the_full_evaluation(job: TrainingJob, cluster: Cluster) -> None:
    space = training_space(job, world=8, levels=cluster.levels, flash_attention=True)
    table = join(list(space.chunks()))
    costs, fit = evaluate(job, cluster, table), memory_of(job, cluster)(table)
    np.testing.assert_array_equal(costs.peak_memory_bytes, fit.peak_bytes)
    np.testing.assert_array_equal(costs.fits_probability, fit.fits_probability)


def test_coordinates_follow_the_default_order() -> None:
    at = rank_coordinates(Strategy(tp=2, cp=2, dp=2, pp=2))
    assert at[0] == {"tp": 0, "cp": 0, "dp": 0, "pp": 0}
    assert at[1] == {"tp": 1, "cp": 0, "dp": 0, "pp": 0}
    assert at[2] == {"tp": 0, "cp": 1, "dp": 0, "pp": 0}
    assert at[4] == {"tp": 0, "cp": 0, "dp": 1, "pp": 0}
    assert at[8] == {"tp": 0, "cp": 0, "dp": 0, "pp": 1}
    assert len({tuple(a.items()) for a in at}) == 16


def test_experts_have_their_own_coordinates() -> None:
    at = rank_coordinates(Strategy(tp=2, dp=4, ep=4, etp=1))
    assert [a["ep"] for a in at] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_hosts_of_a_rack_are_its_trays() -> None:
    cluster = find_cluster("gb200-nvl72", 1)
    placement = default_placement(Strategy(dp=cluster.num_devices), cluster)
    per_host = cluster.groups[0].node.devices_per_host or cluster.num_devices
    assert len({r.host for r in placement.ranks}) == cluster.num_devices // per_host
    assert {r.device for r in placement.ranks} == set(range(per_host))
