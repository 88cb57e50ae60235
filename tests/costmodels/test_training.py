from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.collectives.times import Collective, collective_s
from costmodels.job import TrainingJob
from costmodels.models import find_model
from costmodels.stacks import find_stack
from costmodels.strategy import ConfigTable, Recompute, Strategy
from costmodels.training.evaluate import evaluate, rated_peak_flops_per_s
from hardware.catalog import find_cluster, find_device
from hardware.errors import UnknownNameError
from tests.costmodels.cases import MIXTURE, cluster, gpt_job

WORLD = 16


def _strategies() -> list[Strategy]:
    dense = [
        Strategy(tp=tp, pp=pp, dp=WORLD // (tp * pp), micro_batch=mbs, zero=zero, sequence_parallel=tp > 1)
        for tp in (1, 2, 8)
        for pp in (1, 2)
        for mbs in (1, 2)
        for zero in (0, 1)
    ]
    return [*dense, Strategy(dp=WORLD, zero=3, micro_batch=2), Strategy(tp=2, dp=8, recompute=Recompute.FULL)]


@st.composite
def dense_strategies(draw: st.DrawFn) -> Strategy:
    tp = draw(st.sampled_from([1, 2, 4, 8]))
    pp = draw(st.sampled_from([p for p in (1, 2, 4) if tp * p <= WORLD]))
    return Strategy(
        tp=tp,
        pp=pp,
        dp=WORLD // (tp * pp),
        micro_batch=draw(st.sampled_from([1, 2, 4])),
        sequence_parallel=tp > 1 and draw(st.booleans()),
        recompute=draw(st.sampled_from(list(Recompute))),
        zero=draw(st.sampled_from([0, 1])),
    )


def test_parts_sum_to_the_step() -> None:
    """The total is its parts, so a breakdown never disagrees with it."""
    costs = evaluate(gpt_job(), cluster(), ConfigTable.from_strategies(_strategies()))
    assert np.allclose(sum(costs.time_parts().values()), costs.step_s)
    assert np.allclose(sum(costs.memory.parts().values()), costs.peak_memory_bytes)


def test_one_row_costs_what_it_costs_among_many() -> None:
    """One code path: a strategy alone is a table of one row."""
    strategies = _strategies()
    together = evaluate(gpt_job(), cluster(), ConfigTable.from_strategies(strategies))
    for i, strategy in enumerate(strategies):
        alone = evaluate(gpt_job(), cluster(), ConfigTable.from_strategies([strategy]))
        assert alone.step_s[0] == pytest.approx(together.step_s[i])
        assert alone.peak_memory_bytes[0] == pytest.approx(together.peak_memory_bytes[i])


@settings(max_examples=25, deadline=None)
@given(strategy=dense_strategies(), factor=st.floats(1.1, 8.0))
def test_more_bandwidth_is_never_slower(strategy: Strategy, factor: float) -> None:
    table = ConfigTable.from_strategies([strategy])
    slow = evaluate(gpt_job(), cluster(), table, corrected=False).step_s[0]
    between = evaluate(gpt_job(), cluster(inter=25e9 * factor), table, corrected=False).step_s[0]
    inside = evaluate(gpt_job(), cluster(intra=300e9 * factor), table, corrected=False).step_s[0]
    assert between <= slow * (1 + 1e-9)
    assert inside <= slow * (1 + 1e-9)


@settings(max_examples=20, deadline=None)
@given(strategy=dense_strategies())
def test_half_the_batch_never_takes_longer(strategy: Strategy) -> None:
    table = ConfigTable.from_strategies([strategy])
    whole = evaluate(gpt_job(global_batch=128), cluster(), table, corrected=False).step_s[0]
    half = evaluate(gpt_job(global_batch=64), cluster(), table, corrected=False).step_s[0]
    assert half <= whole * (1 + 1e-9)


def test_full_recompute_costs_time_and_saves_memory() -> None:
    """One more forward pass: between a fifth and a half of the step (44 matched public pairs: 1.05 to
    1.61)."""
    rows = [Strategy(tp=2, dp=8, micro_batch=2, recompute=r) for r in (Recompute.NONE, Recompute.FULL)]
    costs = evaluate(gpt_job(stack="megatron-2022"), cluster(), ConfigTable.from_strategies(rows))
    assert 1.05 < costs.step_s[1] / costs.step_s[0] < 1.61
    assert costs.memory.activations_bytes[1] < 0.3 * costs.memory.activations_bytes[0]


def test_bubble_follows_the_pipeline_formula() -> None:
    """(p - 1) / m of the work of one stage, divided by the model chunks."""
    job = TrainingJob(model=find_model("gpt3-13b"), seq_len=2048, global_batch=32)
    rows = [Strategy(pp=4, dp=4, micro_batch=1), Strategy(pp=4, dp=4, micro_batch=1, vpp=2)]
    costs = evaluate(job, cluster(), ConfigTable.from_strategies(rows), corrected=False)
    assert costs.bubble_s[0] == pytest.approx(2 * costs.bubble_s[1], rel=1e-6)
    work = costs.forward_s[0] + costs.backward_s[0] + costs.host_s[0]
    assert costs.bubble_s[0] / work == pytest.approx(3 / 8, rel=0.15)


def test_interval_holds_the_prediction() -> None:
    costs = evaluate(gpt_job(), cluster(), ConfigTable.from_strategies(_strategies()))
    assert (costs.step_low_s < costs.step_s).all()
    assert (costs.step_s < costs.step_high_s).all()


def test_full_sharding_divides_states_over_all_ranks() -> None:
    rows = [Strategy(dp=WORLD, zero=z) for z in (0, 1, 2, 3)]
    memory = evaluate(gpt_job(), cluster(), ConfigTable.from_strategies(rows)).memory
    states = memory.weights_bytes + memory.gradients_bytes + memory.optimizer_bytes
    assert (np.diff(states) < 0).all()
    assert memory.optimizer_bytes[1] == pytest.approx(memory.optimizer_bytes[0] / WORLD)


def test_sharded_gradients_are_reduced_for_every_micro_batch() -> None:
    """A shard of the gradients cannot take in the next micro-batch before this one is reduced."""
    shards = [Strategy(dp=WORLD, zero=zero, overlap_dp=False) for zero in (1, 2)]
    table = ConfigTable.from_strategies(shards)
    few, many = (
        evaluate(gpt_job(global_batch=WORLD * n), cluster(), table, corrected=False).dp_comm_s for n in (1, 9)
    )
    assert few[0] == pytest.approx(few[1])
    assert many[0] == pytest.approx(few[0])
    assert few[1] < many[1] < 9 * few[1]


def test_a_tied_embedding_is_added_up_between_first_and_last_stage() -> None:
    """Once per step, over the links between those stages; not on one stage, not where nothing is tied."""
    job, table = (
        gpt_job(),
        ConfigTable.from_strategies(
            [Strategy(pp=1, dp=WORLD), Strategy(pp=4, dp=4), Strategy(tp=2, pp=4, dp=2), Strategy(pp=16)]
        ),
    )
    costs = evaluate(job, cluster(), table, corrected=False)
    stack, levels = find_stack(job.stack), cluster().levels
    words = job.model.vocab * job.model.hidden
    gradients = np.array([words, words / 2, words]) * stack.main_grad_bytes
    expected = collective_s(
        Collective.ALL_REDUCE, gradients, np.array([12, 12, 15]), np.array([2, 2, 2]), levels
    )
    assert np.allclose(costs.tied_comm_s, [0.0, *(expected * stack.dp_comm)])
    more = evaluate(replace(job, global_batch=2 * job.global_batch), cluster(), table, corrected=False)
    assert np.allclose(more.tied_comm_s, costs.tied_comm_s)
    untied = replace(job, model=replace(job.model, tied_head=False))
    assert not evaluate(untied, cluster(), table, corrected=False).tied_comm_s.any()


def test_deepspeed_reduces_gradients_of_fp16_as_they_are() -> None:
    """Half the bytes of fp32 ones, which it accumulates under bf16."""
    table = ConfigTable.from_strategies([Strategy(dp=WORLD, zero=0)])
    wide, narrow = (
        evaluate(
            gpt_job(stack="megatron-deepspeed-2021", precision=precision), cluster(), table, corrected=False
        ).dp_comm_s[0]
        for precision in ("bf16", "fp16")
    )
    assert 0.0 < narrow == pytest.approx(wide / 2, rel=0.02)


def test_a_loss_in_one_kernel_takes_less_than_passes_over_wide_logits() -> None:
    table = ConfigTable.from_strategies([Strategy(dp=WORLD)])
    stack = replace(find_stack("megatron-core"), loss_bytes_per_logit=10.0)
    fused, plain = (
        evaluate(gpt_job(), cluster(), table, stack=s)
        for s in (stack, replace(stack, loss_bytes_per_logit=52.0))
    )
    assert fused.backward_s[0] < plain.backward_s[0]
    assert fused.forward_s[0] == plain.forward_s[0]


def test_devices_that_share_adapters_reduce_gradients_slower_but_send_alike() -> None:
    """Rings lose on shared adapters, a send from stage to stage does not."""
    own = cluster()
    shared = replace(own, fabrics=tuple(replace(f, technology="ib-shared") for f in own.fabrics))
    table = ConfigTable.from_strategies([Strategy(dp=WORLD, overlap_dp=False), Strategy(pp=2, dp=8)])
    job = gpt_job(stack="megatron-2021")
    alone, together = (evaluate(job, c, table, corrected=False) for c in (own, shared))
    assert together.dp_comm_s[0] > 1.5 * alone.dp_comm_s[0]
    assert together.pp_comm_s[1] == alone.pp_comm_s[1]


def test_sharded_gradients_pass_through_memory_whole() -> None:
    """The layer in backward has its gradients whole before they are scattered."""
    table = ConfigTable.from_strategies([Strategy(dp=WORLD, zero=zero) for zero in (1, 2)])
    memory = evaluate(gpt_job(), cluster(), table).memory
    assert memory.gathered_bytes[0] == 0 < memory.gathered_bytes[1]
    assert memory.peak_bytes[1] < memory.peak_bytes[0]


def test_experts_are_gathered_over_the_ranks_that_share_them() -> None:
    """With one expert-parallel group over all ranks no expert weight is sharded, so none is gathered."""
    job = TrainingJob(model=MIXTURE, seq_len=2048, global_batch=32)
    table = ConfigTable.from_strategies([Strategy(dp=WORLD, ep=ep, zero=3) for ep in (WORLD, 1)])
    spread, alone = evaluate(job, cluster(), table, corrected=False).dp_comm_s
    assert spread < alone


def test_experts_are_cut_by_expert_degree() -> None:
    job = TrainingJob(model=MIXTURE, seq_len=2048, global_batch=32)
    rows = [Strategy(dp=WORLD, ep=e, zero=1) for e in (1, 8)]
    costs = evaluate(job, cluster(), ConfigTable.from_strategies(rows))
    assert costs.memory.weights_bytes[1] < 0.5 * costs.memory.weights_bytes[0]
    assert costs.ep_comm_s[0] == 0 < costs.ep_comm_s[1]


def test_fewer_bits_never_slower_where_the_device_has_them() -> None:
    """At the sizes that 8 bits are used for; small matmuls pay more for quantising than they save."""
    table = ConfigTable.from_strategies([Strategy(tp=2, pp=4, dp=2, micro_batch=2, sequence_parallel=True)])
    model = find_model("llama-3.1-70b")
    jobs = [TrainingJob(model=model, seq_len=4096, global_batch=32, precision=p) for p in ("bf16", "fp8")]
    times = [evaluate(job, cluster(device="h100"), table).step_s[0] for job in jobs]
    assert times[1] < times[0]


def test_separate_casts_cost_time_with_8_bits_only() -> None:
    table = ConfigTable.from_strategies([Strategy(tp=8, dp=2, sequence_parallel=True)])
    model, stack = find_model("llama-3.1-8b"), find_stack("megatron-core")
    for precision, slower in (("bf16", False), ("fp8", True)):
        job = TrainingJob(model=model, seq_len=4096, global_batch=32, precision=precision)
        steps = [
            evaluate(job, cluster(device="h100"), table, stack=replace(stack, separate_casts=cast)).step_s[0]
            for cast in (False, True)
        ]
        assert bool(steps[1] > steps[0]) is slower


def test_rated_peak_follows_precision() -> None:
    h100 = find_device("h100")
    assert rated_peak_flops_per_s(h100, "bf16") == 989e12
    assert rated_peak_flops_per_s(h100, "mxfp8") == 1979e12
    assert rated_peak_flops_per_s(find_device("v100-32gb"), "fp16") == 125e12


def test_unknown_stack_is_named_with_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="megatron-core"):
        evaluate(gpt_job(stack="megatron-cor"), cluster(), ConfigTable.from_strategies([Strategy(dp=WORLD)]))


@pytest.mark.parametrize(
    "strategy",
    [
        Strategy(dp=32, zero=3, shard_group=8),
        Strategy(dp=8, cp=4, zero=3, shard_group=8),
        Strategy(dp=8, cp=4, zero=3, recompute=Recompute.FULL),
    ],
)
def test_one_backward_pass_does_not_hide_two_exchanges(strategy: Strategy) -> None:
    """Sequences twice as long compute twice as much: what hides under it is one traffic after the other."""
    job = TrainingJob(model=find_model("llama-3.1-8b"), seq_len=2048, global_batch=256)
    longer = replace(job, seq_len=4096)
    rows, machines = ConfigTable.from_strategies([strategy]), find_cluster("dgx-h100", 4)
    short, long = (evaluate(j, machines, rows).step_s[0] for j in (job, longer))
    assert short <= long
