import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from costmodels.job import TrainingJob
from costmodels.models import find_model
from costmodels.strategy import Strategy
from hardware.catalog import find_cluster
from hardware.measured_links import links_from_matrices
from planner.training.placement import host_terms, planned_placement
from tests.planner.conftest import Meshwright

JOB = TrainingJob(model=find_model("gpt3-13b"), seq_len=2048, global_batch=64)
UNTIED = replace(JOB, model=find_model("llama-3.1-8b"))


def cluster_of(rates):
    """Build DGX A100 nodes joined by links of these rates."""
    hosts = tuple(f"h{i}" for i in range(len(rates[0])))
    links = links_from_matrices("test", hosts, list(rates))
    return replace(find_cluster("dgx-a100", len(hosts)), measured_links=links)


def two_leaves(size, days, seed=0):
    """Make rates of hosts that alternate between two leaves, 20 GB/s inside and 10 GB/s across."""
    rng = np.random.default_rng(seed)
    leaf = np.arange(size) % 2
    lasting = np.where(leaf[:, None] == leaf, 20e9, 10e9)
    return lasting * np.exp(0.02 * rng.standard_normal((days, size, size)))


def test_terms_count_rings_of_all_stages_and_hops_both_ways():
    """tp 8, pp 2, dp 2 on four hosts: a ring per stage over two hosts, a pipeline per replica."""
    gradients, pipeline, tensor, _ = host_terms(
        Strategy(tp=8, pp=2, dp=2, micro_batch=1), JOB, per_host=8, num_nics=8
    )
    rings = set(zip(gradients.group.tolist(), gradients.head.tolist(), gradients.tail.tolist(), strict=True))
    assert {(a, b) for _, a, b in rings} == {(0, 1), (1, 0), (2, 3), (3, 2)}
    assert gradients.num_groups == 2
    assert {(a, b) for a, b in zip(pipeline.head.tolist(), pipeline.tail.tolist(), strict=True)} == {
        (0, 2), (2, 0), (1, 3), (3, 1)
    }  # fmt: skip
    assert len(tensor.head) == 0
    params = JOB.model.num_params / 16
    assert gradients.num_bytes[0] == pytest.approx(4 * params)


def test_the_ends_of_a_tied_embedding_reduce_its_gradients():
    """tp 8, pp 4 on four hosts: first and last exchange a rank's words once a step; untied models do not."""
    strategy = Strategy(tp=8, pp=4, dp=1, micro_batch=1)
    tied = host_terms(strategy, JOB, per_host=8, num_nics=8)[-1]
    assert tied.name == "tied embedding"
    assert {*zip(tied.head.tolist(), tied.tail.tolist(), strict=True)} == {(0, 3), (3, 0)}
    assert tied.num_bytes[0] == pytest.approx(4 * JOB.model.vocab * JOB.model.hidden / 8)
    names = [term.name for term in host_terms(strategy, UNTIED, per_host=8, num_nics=8)]
    assert names == ["gradients", "pipeline", "tensor"]


def test_flows_beyond_the_ports_share_them():
    strategy = Strategy(tp=8, pp=1, dp=2)
    wide = host_terms(strategy, JOB, per_host=8, num_nics=8)[0]
    narrow = host_terms(strategy, JOB, per_host=8, num_nics=1)[0]
    assert narrow.num_bytes == pytest.approx(8 * wide.num_bytes)


def test_without_measured_links_the_default_order_stays():
    placed = planned_placement(Strategy(tp=8, pp=2), JOB, find_cluster("dgx-a100", 2))
    assert placed.placement.gain_frac == 0.0
    assert placed.diagnostics == ()


def test_a_lasting_difference_moves_hosts_and_keeps_rank_order():
    cluster = cluster_of(two_leaves(8, 3))
    strategy = Strategy(tp=8, pp=8)
    placed = planned_placement(strategy, UNTIED, cluster)
    ranks = placed.placement.ranks
    assert [r.rank for r in ranks] == list(range(64))
    assert len({(r.host, r.device) for r in ranks}) == 64
    assert placed.placement.gain_frac > 0.2
    assert placed.placement.bound_frac >= placed.placement.gain_frac - 0.05
    leaves = [int(ranks[8 * i].host[1:]) % 2 for i in range(8)]
    assert sum(a != b for a, b in pairwise(leaves)) == 1
    assert "hosts reordered" in placed.diagnostics[0]


def test_a_tied_embedding_brings_its_ends_together():
    placed = planned_placement(Strategy(tp=8, pp=8), JOB, cluster_of(two_leaves(8, 3)))
    leaves = [int(placed.placement.ranks[8 * i].host[1:]) % 2 for i in range(8)]
    assert leaves[0] == leaves[-1]


def test_noise_keeps_the_default_order_and_says_so():
    rng = np.random.default_rng(1)
    cluster = cluster_of(20e9 * np.exp(0.02 * rng.standard_normal((1, 6, 6))))
    placed = planned_placement(Strategy(tp=8, pp=3, dp=2), JOB, cluster)
    assert [r.host for r in placed.placement.ranks[::8]] == [f"h{i}" for i in range(6)]
    assert "default host order kept" in placed.diagnostics[0]
    assert "not significant" in placed.diagnostics[0]


def test_slow_measured_links_slow_the_step(meshwright: Meshwright, tmp_path: Path):
    """What mpiGraph measured prices the network, not the data sheet of the ports."""
    steps = []
    for rate in (20_000.0, 200.0):
        table = "\n".join(
            "\t".join([f"h{i}:{i} to", *(f"{0.0 if i == j else rate}" for j in range(2))]) for i in range(2)
        )
        (tmp_path / "links.txt").write_text(f"Send\th0:0\th1:1\t\n{table}\n")
        made = ["import", "mpigraph", str(tmp_path / "links.txt"), "--node", "dgx-a100"]
        meshwright(*made, "-o", str(tmp_path / "hosts.yaml"))
        asked = ["--cluster", str(tmp_path / "hosts.yaml"), "--seq-len", "2048", "--global-batch", "64"]
        plan = json.loads(meshwright("plan", "train", "--model", "gpt3-1.3b", *asked, "--json").stdout)
        steps.append(plan["plans"][0]["predicted"]["step_s"])
        assert any("over 8 ports" in note for note in plan["diagnostics"])
    assert steps[1] > 1.1 * steps[0]
