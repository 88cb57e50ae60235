"""Model states, activations in flight, logits and the worst stage, worked by hand."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.graph_import.transformer import transformer_graph
from costmodels.job import TrainingJob
from costmodels.memory.activations import saved_bytes
from costmodels.memory.coefficients import memory_coefficients, usable_bytes
from costmodels.memory.feasibility import fits_probability, normal_cdf
from costmodels.memory.peak import StageDetails, chunks_in_flight, peak_memory, stage_memory
from costmodels.stacks import Stack
from costmodels.strategy import ConfigTable, Recompute, Strategy
from hardware.catalog import find_device

HIDDEN, LAYERS, VOCAB, SEQ = 1024, 8, 32_000, 2048
GPT = transformer_graph(
    name="gpt", hidden=HIDDEN, ffn_hidden=4 * HIDDEN, num_layers=LAYERS, num_heads=16, vocab=VOCAB,
    max_seq_len=SEQ, gated=True, bias=False, rms=True, tied=False, rotary=True,
)  # fmt: skip
JOB = TrainingJob(model=GPT, seq_len=SEQ, global_batch=64)
STACK = Stack(name="plain")
BARE = replace(
    memory_coefficients(), workspace_bytes=0.0, slack_frac=0.0, runtime_bytes=0.0, expert_imbalance_frac=0.0
)


def table(**changes) -> ConfigTable:
    return ConfigTable.from_strategies([Strategy(**changes)])


def stage(rank=0, job=JOB, stack=STACK, details=None, c=BARE, **changes):
    rows = table(**changes)
    return stage_memory(job, rows, stack, np.full_like(rows.pp, rank), c, details=details)


def states(memory) -> float:
    return float((memory.weights_bytes + memory.gradients_bytes + memory.optimizer_bytes)[0])


def test_eighteen_bytes_per_parameter_without_sharding():
    assert states(stage(zero=0)) == 18 * GPT.num_params


@pytest.mark.parametrize("dp", [2, 8, 64])
def test_sharded_optimizer_keeps_six_plus_twelve_over_d(dp):
    assert states(stage(dp=dp, zero=1)) == pytest.approx((6 + 12 / dp) * GPT.num_params)


def test_context_ranks_share_the_optimizer_too():
    assert states(stage(dp=4, cp=2, zero=1)) == pytest.approx((6 + 12 / 8) * GPT.num_params)


def test_zero_two_and_three_shard_gradients_and_weights():
    assert states(stage(dp=8, zero=2)) == pytest.approx((2 + 16 / 8) * GPT.num_params)
    assert states(stage(dp=8, zero=3)) == pytest.approx(16 / 8 * GPT.num_params)


def test_shard_group_limits_the_cut():
    assert states(stage(dp=64, zero=1, shard_group=8)) == pytest.approx((6 + 12 / 8) * GPT.num_params)


def test_sixteen_bit_gradients_need_sixteen_bytes():
    assert states(stage(zero=0, stack=replace(STACK, main_grad_bytes=2.0))) == 16 * GPT.num_params


def test_deepspeed_widens_gradients_by_precision():
    stack = replace(STACK, widened_gradients=True)
    fp16 = replace(JOB, precision="fp16")
    assert states(stage(job=fp16, stack=stack, dp=4, zero=1)) == pytest.approx((4 + 16 / 4) * GPT.num_params)
    short = stage(job=replace(fp16, seq_len=8, model=replace(GPT, vocab=128)), stack=stack, zero=0)
    assert short.allocated_bytes[0] == pytest.approx(20 * GPT.num_params)
    assert states(stage(stack=stack, dp=4, zero=1)) == pytest.approx((8 + 12 / 4) * GPT.num_params)


def test_pipeline_stages_sum_to_the_model():
    first, last = stage(0, pp=2, zero=0), stage(1, pp=2, zero=0)
    assert states(first) + states(last) == 18 * GPT.num_params


def test_a_tied_head_is_held_twice_when_stages_differ():
    tied = replace(JOB, model=replace(GPT, tied_head=True))
    held = states(stage(0, job=tied, pp=2, zero=0)) + states(stage(1, job=tied, pp=2, zero=0))
    assert held == 18 * (tied.model.num_params + VOCAB * HIDDEN)


def test_experts_are_sharded_over_their_own_replicas():
    moe = transformer_graph(
        name="moe", hidden=256, ffn_hidden=512, num_layers=2, num_heads=4, vocab=1024, num_experts=8,
        top_k=2, expert_ffn_hidden=512, gated=True, bias=False, tied=False,
    )  # fmt: skip
    job = TrainingJob(model=moe, seq_len=128, global_batch=64)
    routed = 2 * 8 * 3 * 256 * 512
    dense = moe.num_params - routed
    held = states(stage(job=job, dp=8, ep=8, zero=1))
    assert held == pytest.approx((6 + 12 / 8) * dense + 18 * routed / 8)
    held = states(stage(job=job, dp=8, ep=2, zero=1))
    assert held == pytest.approx((6 + 12 / 8) * dense + (6 + 12 / 4) * routed / 2)


def in_flight(pp, vpp, num_micro, rank, **more) -> float:
    columns = [np.array([n]) for n in (pp, vpp, num_micro, rank)]
    return float(chunks_in_flight(*columns, **more)[0])


def test_one_forward_one_backward_keeps_what_is_ahead():
    assert [in_flight(4, 1, 64, r) for r in range(4)] == [4, 3, 2, 1]
    assert in_flight(8, 1, 2, 0) == 2


def test_interleaving_keeps_chunks():
    assert in_flight(4, 2, 64, 0) == 2 * 3 + 4 + 1
    assert in_flight(4, 2, 64, 3) == 4 + 1
    assert in_flight(4, 3, 64, 3, micro_batch_group=5) == 2 * 5 + 1
    assert in_flight(4, 2, 3, 0) == 6


def test_interleaved_activations_exceed_plain_ones_by_megatrons_factor():
    plain = float(stage(0, pp=4).activations_bytes[0])
    twice = float(stage(0, pp=4, vpp=2).activations_bytes[0])
    assert twice / plain == pytest.approx(11 / 8)
    assert 11 / 8 == 1 + (4 - 1) / (4 * 2)


def test_activations_are_layers_times_micro_batches_in_flight():
    ones = np.array([1])
    kept = saved_bytes(GPT, ones, ones, 0 * ones, seq_len=SEQ, precision="bf16", stack=STACK).kept[0]
    assert stage(0).activations_bytes[0] == kept * SEQ * LAYERS
    assert stage(1, pp=4, micro_batch=2).activations_bytes[0] == kept * 2 * SEQ * 2 * 3
    assert stage(0, cp=4).activations_bytes[0] == kept * SEQ / 4 * LAYERS


def test_full_recompute_keeps_layer_inputs_and_works_on_one_layer():
    ones = np.array([1])
    kept = saved_bytes(GPT, ones, ones, 0 * ones, seq_len=SEQ, precision="bf16", stack=STACK).kept[0]
    full = stage(0, pp=2, recompute=Recompute.FULL)
    assert full.activations_bytes[0] == 2 * HIDDEN * SEQ * 4 * 2
    assert full.buffers_bytes[0] >= kept * SEQ
    some = stage(0, pp=2, recompute=Recompute.FULL, recompute_layers=1)
    assert some.activations_bytes[0] == (2 * HIDDEN + 3 * kept) * SEQ * 2


@pytest.mark.parametrize("pp", [1, 4])
def test_recomputing_one_layer_more_never_needs_more(pp):
    unfused = replace(STACK, flash=False)
    layers = range(1, LAYERS // pp + 1)
    rows = [Strategy(pp=pp, recompute=Recompute.FULL, recompute_layers=n) for n in layers]
    peaks = peak_memory(JOB, ConfigTable.from_strategies(rows), unfused).peak_bytes
    assert (np.diff(peaks) < 0).all()


def test_selective_recompute_drops_the_scores():
    unfused = replace(STACK, flash=False)
    scores = 2 * 16 * SEQ * SEQ * LAYERS
    held = (
        stage(stack=unfused).activations_bytes
        - stage(stack=unfused, recompute=Recompute.SELECTIVE).activations_bytes
    )
    assert held[0] == scores


def test_logits_belong_to_the_last_stage():
    assert stage(0, pp=2).logits_bytes[0] == 0.0
    assert stage(1, pp=2, tp=2, micro_batch=2).logits_bytes[0] == 6 * 2 * SEQ * VOCAB / 2
    copies = replace(STACK, logit_bytes=10.0)
    assert stage(1, pp=2, stack=copies).logits_bytes[0] == 10 * SEQ * VOCAB


def test_details_of_measured_runs():
    plain = stage(3, pp=4)
    shorter = stage(3, pp=4, details=StageDetails(missing_layers=1.0))
    assert plain.activations_bytes[0] == 2 * shorter.activations_bytes[0]
    ahead = stage(3, pp=4, details=StageDetails(extra_heads=1))
    assert ahead.logits_bytes[0] == 2 * plain.logits_bytes[0]
    later = stage(3, pp=4, details=StageDetails(deferred_logits=2))
    assert later.logits_bytes[0] - plain.logits_bytes[0] == 2 * SEQ * (2 * VOCAB + 2)


def test_the_worst_stage_is_reported():
    rows = table(tp=2, pp=4, dp=2, micro_batch=2)
    c = memory_coefficients(STACK.name)
    both = [stage_memory(JOB, rows, STACK, np.array([r]), c).peak_bytes[0] for r in (0, 3)]
    assert peak_memory(JOB, rows, STACK).peak_bytes[0] == max(both)


ROWS = st.builds(
    Strategy,
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.sampled_from([1, 2, 4, 8]),
    dp=st.sampled_from([1, 2, 8]),
    cp=st.sampled_from([1, 2]),
    micro_batch=st.sampled_from([1, 2, 4]),
    sequence_parallel=st.booleans(),
    recompute=st.sampled_from(list(Recompute)),
    zero=st.sampled_from([0, 1, 2, 3]),
)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=5), flash=st.booleans())
def test_parts_sum_and_rows_stand_alone(rows, flash):
    stack = replace(STACK, flash=flash)
    memory = peak_memory(JOB, ConfigTable.from_strategies(rows), stack)
    parts = np.sum(list(memory.parts().values()), axis=0)
    np.testing.assert_allclose(parts, memory.peak_bytes, rtol=1e-12)
    for f in fields(memory):
        assert (getattr(memory, f.name) >= 0).all()
    for i, row in enumerate(rows):
        alone = peak_memory(JOB, ConfigTable.from_strategies([row]), stack)
        assert alone.peak_bytes[0] == memory.peak_bytes[i]


@settings(max_examples=40, deadline=None)
@given(row=ROWS, flash=st.booleans())
def test_more_sharding_and_less_work_never_need_more(row, flash):
    stack = replace(STACK, flash=flash)

    def peak(strategy):
        return float(peak_memory(JOB, ConfigTable.from_strategies([strategy]), stack).peak_bytes[0])

    assert peak(replace(row, micro_batch=2 * row.micro_batch)) >= peak(row)
    assert peak(replace(row, zero=1)) <= peak(replace(row, zero=0)) * (1 + 1e-12)
    assert peak(replace(row, zero=2)) <= peak(replace(row, zero=1)) * (1 + 1e-12)


@given(
    peak=st.floats(1e9, 2e11),
    usable=st.floats(1e9, 2e11),
    more=st.floats(1.0, 3.0),
    sigma=st.floats(0.01, 0.3),
)
def test_more_memory_is_never_less_feasible(peak, usable, more, sigma):
    column = np.array([peak])
    assert fits_probability(column, usable * more, sigma)[0] >= fits_probability(column, usable, sigma)[0]


def test_probability_is_a_half_at_the_limit_and_normal_around_it():
    assert fits_probability(np.array([80e9]), 80e9, 0.05)[0] == pytest.approx(0.5, abs=1e-7)
    assert normal_cdf(np.array([1.959964]))[0] == pytest.approx(0.975, abs=1e-6)


def test_a_little_of_a_device_is_not_usable():
    device = find_device("a100-80gb")
    assert 0.98 < usable_bytes(device) / device.memory_bytes < 0.99


def test_stacks_without_measurements_use_the_pooled_constants():
    assert memory_coefficients("no-such-stack") == memory_coefficients()
    assert memory_coefficients("megatron-deepspeed-2022").runtime_bytes > memory_coefficients().runtime_bytes
