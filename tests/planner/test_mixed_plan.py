import json
from dataclasses import replace

import pytest

from costmodels.job import TrainingJob
from costmodels.models import find_model
from costmodels.stacks import find_stack
from costmodels.strategy import Recompute, Strategy
from costmodels.training.evaluate import evaluate
from hardware.catalog import find_cluster
from hardware.errors import InfeasibleError, SpecError
from planner.request import TrainRequest
from planner.training import mixed_plan
from planner.training.flow import plan_training
from planner.training.mixed_plan import best_mixed_pipelines
from planner.training.mixed_shapes import equal_groups, mixed_shapes
from planner.training.space import training_space
from planner.training.stage_hops import StageHops
from tests.planner.conftest import Meshwright

JOB = TrainingJob(model=find_model("gpt3-13b"), seq_len=2048, global_batch=64)


def test_every_group_keeps_its_own_devices_and_layers_add_up():
    cluster = find_cluster("holmes-hybrid")
    pipelines = best_mixed_pipelines(JOB, cluster, micro_batches=(1,), recomputes=(Recompute.NONE,))
    assert pipelines
    assert [p.step_s for p in pipelines] == sorted(p.step_s for p in pipelines)
    for pipeline in pipelines:
        assert sum(s.num_layers for s in pipeline.stages) == JOB.model.num_layers
        for group in (0, 1):
            used = sum(s.tp for s in pipeline.stages if s.group == group) * pipeline.strategy.dp
            assert used == 16
        order = [s.group for s in pipeline.stages]
        assert order in (sorted(order), sorted(order, reverse=True))
        assert all(s.peak_memory_bytes <= s.limit_bytes for s in pipeline.stages)


def test_layers_follow_the_attained_speed():
    """A group measured twice as fast as the other takes about twice the layers."""
    cluster = find_cluster("holmes-hybrid")
    options = {"micro_batches": (1,), "recomputes": (Recompute.FULL,), "top": 10**6}
    found = best_mixed_pipelines(JOB, cluster, attained={0: 2.0, 1: 1.0}, **options)
    two = next(p for p in found if p.strategy.pp == 2 and p.strategy.tp == 2)
    layers = {s.group: s.num_layers for s in two.stages}
    assert 25 <= layers[0] <= 28


def test_unlike_devices_get_unlike_layers():
    slow, fast = find_cluster("dgx-1v", 1), find_cluster("dgx-a100-40gb", 1)
    cluster = replace(
        find_cluster("holmes-hybrid"),
        groups=(
            replace(fast.groups[0], fabrics=("ethernet",), name="fast"),
            replace(slow.groups[0], fabrics=("ethernet",), name="slow"),
        ),
    )
    job = replace(JOB, model=find_model("llama-2-7b"), precision="fp16")
    best = best_mixed_pipelines(job, cluster, micro_batches=(1,))[0]
    stages = {g: [s.num_layers for s in best.stages if s.group == g] for g in (0, 1)}
    rate = {g: len(stages[g]) and sum(stages[g]) for g in (0, 1)}
    assert rate[0] > rate[1] > 0


def test_no_layer_split_beats_the_bound_with_exchanges():
    cluster = replace(
        find_cluster("holmes-hybrid"),
        groups=tuple(replace(g, count=1) for g in find_cluster("holmes-hybrid").groups),
    )
    job = replace(JOB, global_batch=64)
    shapes = list(mixed_shapes(job, cluster, [0, 1], {"micro_batch": (1, 4), "recompute": (2,)}))
    costs = mixed_plan._group_costs(job, cluster, shapes)
    hops = StageHops(job, cluster)
    limits = [mixed_plan._limit_bytes(job, cluster, group) for group in (0, 1)]
    compared = 0
    for strategy, layout in shapes:
        entries = [costs[group, tp, stages, strategy] for group, tp, stages in layout]
        hops_s = hops.seconds(strategy, layout)
        pipeline = mixed_plan._pipeline(job, cluster, strategy, layout, entries, hops_s, tied_s=0.0)
        assert mixed_plan._can_hold(job, layout, entries, limits) == (pipeline is not None)
        if pipeline is not None:
            least_s = mixed_plan._exchange_bound_s(job, strategy, layout, entries, hops_s)
            assert mixed_plan._bound_s(job, strategy, layout, entries) <= least_s <= pipeline.step_s
            compared += 1
    assert compared > 20


def test_a_tied_embedding_crosses_the_islands_once():
    """Eight devices of a node send 4-byte gradients of all words through one 25 Gb/s port at once."""
    cluster = find_cluster("holmes-hybrid")
    options = {"micro_batches": (1,), "recomputes": (Recompute.FULL,), "top": 10**6}
    job = replace(JOB, stack="megascale")
    best = best_mixed_pipelines(job, cluster, **options)
    tied = next(p for p in best if p.strategy.pp == 2 and all(s.tp == 4 for s in p.stages))
    stack = find_stack("megascale")
    rated_s = job.model.vocab * job.model.hidden / 4 * stack.main_grad_bytes * 8 / 3.125e9 * stack.dp_comm
    assert rated_s < tied.tied_s < 1.4 * rated_s
    parts_s = tied.compute_s + tied.exposed_p2p_s + tied.gradient_s + tied.tied_s + tied.other_s
    assert tied.step_s == pytest.approx(parts_s)
    free = replace(job, model=replace(job.model, tied_head=False))
    assert all(p.tied_s == 0.0 for p in best_mixed_pipelines(free, cluster, **options))


def test_few_senders_share_the_port_of_their_node():
    """Four devices of eight send through one 25 Gb/s port: twice the share of eight."""
    hops = StageHops(JOB, find_cluster("holmes-hybrid"))
    eight, four = (
        hops.seconds(Strategy(tp=4, pp=2, dp=dp, micro_batch=8), ((0, 4, 1), (1, 4, 1)))[0] for dp in (2, 1)
    )
    assert four == pytest.approx(eight / 2, rel=0.05)


def test_groups_that_slow_the_others_are_named(tmp_path, meshwright: Meshwright):
    """A V100 node drags a pipeline over two H100 nodes; the note says what they take without it."""
    groups = "".join(
        f"  - {{name: {name}, node: {node}, count: 1, fabrics: [ethernet]}}\n"
        for name, node in (("one", "dgx-h100"), ("two", "dgx-h100"), ("old", "dgx-1v"))
    )
    fabric = "{name: ethernet, kind: clos, technology: ethernet, node_bytes_per_s: 50 GB/s, latency_s: 20 us}"
    path = tmp_path / "three.yaml"
    path.write_text(f"name: three\ngroups:\n{groups}fabrics:\n  - {fabric}\n")
    arguments = ["--model", "llama-2-7b", "--cluster", path, "--seq-len", 2048, "--global-batch", 4]
    plan = json.loads(meshwright("plan", "train", *arguments, "--json").stdout)
    assert any(note.startswith("groups one, two alone: ") for note in plan["diagnostics"])
    assert plan["search"]["num_configs"] > plan["search"]["num_feasible"] > 0
    assert any(f"none of {plan['search']['num_configs']:,} layouts" in note for note in plan["diagnostics"])


OLD_AND_NEW = ["--model", "gpt3-1.3b", "--cluster", "examples/clusters/old-and-new.yaml", "--seq-len", 2048]


def test_degrees_that_groups_share_can_be_narrowed_and_plans_of_one_tensor_degree_emitted(
    meshwright: Meshwright, tmp_path
):
    request, plan = tmp_path / "request.yaml", tmp_path / "plan.json"
    arguments = [*OLD_AND_NEW, "--global-batch", 32, "--precision", "fp16", "--request", request]
    request.write_text("allow: {tp: [2], recompute: [none]}\n")
    assert meshwright("plan", "train", *arguments, "-o", plan).exit_code == 0
    plans = json.loads(plan.read_text())["plans"]
    assert {stage["tp"] for found in plans for stage in found["stages"]} == {2}
    emitted = meshwright("emit", plan, "--target", "megatron-lm", "-o", tmp_path / "out")
    assert emitted.exit_code == 0, emitted.output
    for text, why in (
        ("allow: {vpp: [2]}", "what can: tp, dp, pp"),
        ("allow: {tp: [3]}", "is left: allow tp"),
    ):
        request.write_text(text)
        refused = meshwright("plan", "train", *arguments)
        assert refused.exit_code in (2, 3)
        assert why in refused.stderr


def test_plans_over_unlike_devices_are_explained(meshwright: Meshwright, tmp_path):
    """What the stages share is worth so much; unlike tensor degrees are named when files are asked for."""
    request, plan = tmp_path / "request.yaml", tmp_path / "plan.json"
    request.write_text("allow: {dp: [8, 4], micro_batch: [1], recompute: [none]}\n")
    arguments = [*OLD_AND_NEW, "--global-batch", 32, "--precision", "fp16", "--request", request]
    assert meshwright("plan", "train", *arguments, "-o", plan).exit_code == 0
    said = meshwright("explain", plan, "--json")
    assert said.exit_code == 0, said.output
    (margin,) = json.loads(said.stdout)["margins"]
    assert margin["decision"] == "dp"
    assert margin["slower_frac"] > 0
    document = json.loads(plan.read_text())
    document["plans"][0]["stages"][0]["tp"] *= 2
    plan.write_text(json.dumps(document))
    refused = meshwright("emit", plan, "--target", "megatron-lm", "-o", tmp_path / "out")
    assert "stages have tensor degrees" in refused.stderr


def test_equal_groups_are_one_layout_whichever_comes_first():
    """Two halls of each kind: a quarter of the layouts, none of them lost but for names."""
    base = find_cluster("holmes-hybrid")
    halls = tuple(replace(base.groups[i % 2], count=1, name=f"hall {i}") for i in range(4))
    cluster = replace(base, groups=halls)
    job = replace(JOB, model=find_model("gpt3-1.3b"))
    assert equal_groups(cluster, {}) == [0, 1, 0, 1]
    assert equal_groups(cluster, {0: 1.0, 2: 2.0}) == [0, 1, 2, 1]
    few = list(mixed_shapes(job, cluster, [0, 1, 0, 1], {"micro_batch": (1,), "recompute": (0,)}))
    all_of_them = list(mixed_shapes(job, cluster, [0, 1, 2, 3], {"micro_batch": (1,), "recompute": (0,)}))
    assert len(all_of_them) == 4 * len(few)

    def unnamed(shapes):
        return {(s.dp, s.pp, tuple((g % 2, tp, n) for g, tp, n in layout)) for s, layout in shapes}

    assert unnamed(few) == unnamed(all_of_them)


def test_a_plan_file_names_stages_and_alternatives(meshwright: Meshwright, tmp_path):
    out = tmp_path / "plan.json"
    arguments = ["--model", "gpt3-13b", "--cluster", "holmes-hybrid", "--seq-len", "2048"]
    result = meshwright("plan", "train", *arguments, "--global-batch", "64", "-o", str(out))
    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text())
    mixed = [plan for plan in document["plans"] if plan["stages"]]
    assert mixed
    assert all(check["holds"] for check in mixed[0]["certificate"])
    assert {stage["group"] for stage in mixed[0]["stages"]} == {"infiniband", "roce"}
    notes = " ".join(document["diagnostics"])
    assert "group infiniband alone" in notes
    assert "network that they share" in notes
    assert "option, not taken: averaging models" in notes
    assert "steps late" in notes


def test_a_model_that_fits_nowhere_is_infeasible():
    request = TrainRequest(model="gpt-1t", cluster="holmes-hybrid", seq_len=2048, global_batch=16)
    with pytest.raises(InfeasibleError, match="no pipeline over the groups"):
        plan_training(request)


def test_islands_without_a_common_fabric_are_named(tmp_path):
    path = tmp_path / "split.yaml"
    path.write_text(
        "name: split\n"
        "groups:\n"
        "  - {node: dgx-a100, count: 1, fabrics: [a], name: left}\n"
        "  - {node: dgx-a100, count: 1, fabrics: [b], name: right}\n"
        "fabrics:\n"
        "  - {name: a, kind: clos, technology: ib, latency_s: 5 us}\n"
        "  - {name: b, kind: clos, technology: ib, latency_s: 5 us}\n"
    )
    with pytest.raises(SpecError, match="groups left and right share no fabric"):
        find_cluster(path)


def test_a_pipeline_over_two_groups_is_no_faster_than_both_groups_by_themselves():
    """80 layers do not divide by 12 stages: stages of ends give up a layer, which must not hide the head."""
    cluster = find_cluster("dgx-h100", 4)
    fabric = replace(cluster.fabrics[0], node_bytes_per_s=200e9)
    groups = tuple(
        replace(find_cluster(node, 4).groups[0], name=node, fabrics=(fabric.name,))
        for node in ("dgx-h100", "dgx-a100")
    )
    job = TrainingJob(model=find_model("llama-3.1-70b"), seq_len=4096, global_batch=512)
    mixed = best_mixed_pipelines(job, replace(cluster, groups=groups, fabrics=(fabric,)), top=1)[0]
    rate = 0.0
    for group in groups:
        alone = replace(cluster, groups=(group,), fabrics=(fabric,))
        space = training_space(
            job, world=alone.num_devices, levels=alone.levels, flash_attention=True, allow={}
        )
        tables = [evaluate(job, alone, rows) for rows in space.chunks()]
        rate += 1.0 / min(float(t.step_s[t.fits_probability >= 0.9].min()) for t in tables)
    assert 1.0 / mixed.step_s <= 1.01 * rate


def test_stages_that_wait_draw_what_waiting_devices_draw():
    """Over a wide-area link the stages wait most of the time; a device draws its rated power in no part."""
    request = TrainRequest(
        model="llama-3.2-1b", cluster="two-sites-wan", seq_len=4096, global_batch=64, top=1
    )
    slow = plan_training(request).plans[0].predicted
    busy = plan_training(replace(request, cluster="dgx-h100", nodes=8)).plans[0].predicted
    assert slow.watts_per_device < 0.5 * busy.watts_per_device
    assert slow.energy_j == pytest.approx(slow.watts_per_device * 128 * slow.step_s)
    assert slow.joules_per_token == pytest.approx(slow.energy_j / (64 * 4096))
    assert slow.cost_usd > 0


@pytest.mark.parametrize(("name", "layers"), [("gpt-39.1b", 0.52), ("mixtral-8x7b", 0.33), ("t5-11b", 0.14)])
def test_a_head_is_worth_its_weights_over_those_of_a_layer(name: str, layers: float) -> None:
    """GPT: 51,200 x 8,192 over 12 x 8,192^2; Mixtral: 131 M over two of eight experts and attention, 394 M;
    T5-11B: 33 M over 1024 x 65,536 x 2 and attention, 236 M."""
    job = replace(JOB, model=find_model(name))
    assert mixed_plan._head_layers(job) == pytest.approx(layers, abs=0.01)
