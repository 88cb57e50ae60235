"""Iteration time, memory and closed loop of serving: hand-worked values, limits, properties."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.models import find_model
from costmodels.serving.bound import throughput_bound_tokens_per_s
from costmodels.serving.closed_loop import ClosedLoop, LoopTimes, PrefillPool, run_closed_loop
from costmodels.serving.config import Quant, ServingConfig, ServingTable
from costmodels.serving.engine import engine_names, find_engine
from costmodels.serving.iteration import iteration_cost, iteration_s
from costmodels.serving.machine import serving_machine, system_device
from costmodels.serving.memory import kv_bytes_per_request, kv_transfer_bytes, serving_memory, weight_bytes
from costmodels.serving.operators import IterationWork
from costmodels.serving.predict import closed_loop
from costmodels.serving.runs import ServingRun
from hardware.catalog import find_device
from hardware.errors import UnknownNameError

LLAMA = find_model("llama-3.1-8b")
MACHINE = serving_machine(find_device("h100"))
ENGINE = find_engine("vllm")


def seconds(config=None, prompt=0.0, seen=0.0, seqs=8.0, held=8192.0):
    return float(iteration_s(LLAMA, config or ServingConfig(), ENGINE, MACHINE, prompt, seen, seqs, held)[0])


def test_parts_sum_to_the_iteration_and_rows_are_independent():
    work = IterationWork.of([0, 512], [0, 0], [4, 16], [4096, 16384])
    table = ServingTable.from_configs([ServingConfig(), ServingConfig(tp=2)])
    cost = iteration_cost(LLAMA, table, ENGINE, MACHINE, work)
    assert sum(cost.parts(1).values()) == pytest.approx(cost.iteration_s[1])
    alone = iteration_s(LLAMA, ServingConfig(tp=2), ENGINE, MACHINE, 512, 0, 16, 16384)
    assert alone[0] == pytest.approx(cost.iteration_s[1])


def test_decode_is_not_below_reading_the_weights_once():
    floor_s = (LLAMA.num_params - LLAMA.vocab * LLAMA.hidden) * 2 / MACHINE.device.memory_bytes_per_s
    assert floor_s < seconds(seqs=1.0, held=100.0) < 3.0 * floor_s


@settings(max_examples=15, deadline=None)
@given(seqs=st.integers(1, 128), context=st.integers(64, 8192))
def test_more_work_takes_no_less_time(seqs, context):
    base = seconds(seqs=float(seqs), held=float(seqs * context))
    assert seconds(seqs=float(4 * seqs), held=float(4 * seqs * context)) > 0.9 * base
    assert seconds(seqs=float(seqs), held=float(8 * seqs * context)) > 0.9 * base
    assert seconds(prompt=2048.0, seqs=float(seqs), held=float(seqs * context)) > base


def test_factors_hold_for_their_kind_of_iteration():
    """Twice the matmul factor of prompts doubles the matmuls of prompts, not those of decoding."""
    engine = replace(ENGINE, prefill=replace(ENGINE.prefill, gemm=2.0 * ENGINE.prefill.gemm))
    work = IterationWork.of([0, 512], [0, 0], [8, 0], [8192, 0])
    table = ServingTable.from_configs([ServingConfig(), ServingConfig()])
    before, after = (iteration_cost(LLAMA, table, e, MACHINE, work).gemm_s for e in (ENGINE, engine))
    assert (after / before).tolist() == pytest.approx([1.0, 2.0])


def test_skewed_routing_reads_fewer_experts_and_lengthens_prompts():
    mixtral = find_model("qwen3-30b-a3b")
    table = ServingTable.from_configs([ServingConfig(), ServingConfig()])
    work = IterationWork.of([0, 16384], [0, 0], [24, 0], [24 * 1024, 0])
    even, skewed = (
        iteration_cost(mixtral, table, replace(ENGINE, routing_skew=s), MACHINE, work).experts_s
        for s in (0, 1.2)
    )
    assert skewed[0] < even[0]
    assert skewed[1] > even[1]


def test_narrow_weights_decode_faster():
    wide = seconds(seqs=1.0, held=100.0)
    eight = ServingConfig(weights=Quant.FP8, attention=Quant.FP8)
    four = ServingConfig(weights=Quant.INT4, attention=Quant.INT4)
    assert seconds(four, seqs=1.0, held=100.0) < wide
    assert seconds(eight, seqs=1.0, held=100.0) < wide


def test_weights_and_cache_of_llama_by_hand():
    table = ServingTable.from_configs([ServingConfig(), ServingConfig(tp=2)])
    assert weight_bytes(LLAMA, table)[0] == pytest.approx(2 * LLAMA.num_params, rel=1e-3)
    per_token = 32 * 8 * (128 + 128) * 2.0
    assert kv_bytes_per_request(LLAMA, table, np.array(1600.0))[0] == pytest.approx(per_token * 1600)
    assert kv_bytes_per_request(LLAMA, table, np.array(1600.0))[1] == pytest.approx(per_token * 800)
    assert kv_transfer_bytes(LLAMA, table, np.array(1600.0))[1] == pytest.approx(per_token * 1600)


def test_latent_cache_is_repeated_on_every_tensor_rank_and_blocks_round_up():
    model = find_model("deepseek-v3")
    table = ServingTable.from_configs([ServingConfig(), ServingConfig(tp=8)])
    cached = kv_bytes_per_request(model, table, np.array(17.0), 16)
    assert cached[0] == cached[1] == pytest.approx(61 * 576 * 2.0 * 32)


def test_experts_are_spread_and_cut():
    model = find_model("mixtral-8x7b")
    rows = [ServingConfig(tp=8), ServingConfig(tp=8, ep=8), ServingConfig(dp=8, ep=8)]
    held = weight_bytes(model, ServingTable.from_configs(rows))
    assert held[0] == pytest.approx(held[1], rel=1e-6)
    assert held[2] > held[1]


def test_memory_leaves_what_the_parts_do_not_take():
    memory = serving_memory(
        LLAMA,
        ServingTable.from_configs([ServingConfig()]),
        device_bytes=80e9,
        memory_frac=0.9,
        reserve_bytes=1e9,
    )
    taken = memory.weights_bytes + memory.activations_bytes + memory.reserve_bytes
    assert memory.kv_budget_bytes[0] == pytest.approx(80e9 - taken[0])


def test_drafting_costs_time_per_step():
    assert seconds(ServingConfig(draft_tokens=2)) > seconds()


def test_tables_round_trip_and_name_unknown_columns():
    config = ServingConfig(tp=2, experts=Quant.MXFP4, chunked=False)
    assert ServingTable.from_configs([config]).config(0) == config
    assert ServingTable.from_columns(tp=np.array([1, 2])).num_devices.tolist() == [1, 2]
    with pytest.raises(ValueError, match="tpp"):
        ServingTable.from_columns(tpp=1)


def test_engines_and_systems_by_name():
    assert set(engine_names()) == {"mindie", "sglang", "trtllm", "vllm"}
    assert find_engine("TensorRT-LLM").name == "trtllm"
    with pytest.raises(UnknownNameError):
        find_engine("nothing")
    assert system_device("h100_sxm").name == "h100"


def loop(**changes):
    start = ClosedLoop(
        concurrency=1, prompt_tokens=100.0, output_tokens=11.0, length_spread_frac=0.0, requests_per_client=3,
        chunk_tokens=100.0, max_batch=64, admission_s=0.5,
    )  # fmt: skip
    return replace(start, **changes)


def pool(**changes):
    start = PrefillPool(
        num_queues=1, token_nodes=np.array([100.0, 200.0]), seconds=np.array([2.0, 3.0]), transfer_s=0.0
    )
    return replace(start, **changes)


TIMES = LoopTimes(
    batch_nodes=np.array([0.0, 1.0, 64.0]),
    decode_s=np.array([0.0, 1.0, 1.0]),
    mixed_s=np.array([2.0, 3.0, 3.0]),
)


def test_one_client_sees_its_own_prompt_and_steps():
    result = run_closed_loop(loop(), TIMES)
    assert result.ttft_mean_s == pytest.approx(2.5)
    assert result.tpot_mean_s == pytest.approx(1.0)
    assert result.throughput_tokens_per_s == pytest.approx(3 * 10 / (3 * 12.0))


def test_two_clients_wait_for_each_other():
    result = run_closed_loop(loop(concurrency=2, requests_per_client=1), TIMES)
    assert result.ttft_mean_s == pytest.approx((2.0 + 5.0) / 2 + 0.5)
    assert result.tpot_median_s == pytest.approx((12.0 / 10 + 1.0) / 2)


def test_a_full_cache_makes_requests_wait():
    free = run_closed_loop(loop(concurrency=8), TIMES)
    full = run_closed_loop(loop(concurrency=8, max_batch=2), TIMES)
    assert full.ttft_mean_s > free.ttft_mean_s
    assert full.mean_batch <= 2.0


def test_separate_prompts_leave_decoding_alone():
    result = run_closed_loop(loop(concurrency=4, prefill=pool(num_queues=4)), TIMES)
    assert result.tpot_mean_s == pytest.approx(1.0)
    assert result.ttft_median_s == pytest.approx(2.5)


def test_the_first_token_waits_for_room_where_decoding_is():
    room = run_closed_loop(loop(concurrency=4, requests_per_client=1, prefill=pool(num_queues=4)), TIMES)
    full = run_closed_loop(
        loop(concurrency=4, requests_per_client=1, max_batch=2, prefill=pool(num_queues=4)), TIMES
    )
    assert room.ttft_mean_s == pytest.approx(2.5)
    assert full.ttft_mean_s == pytest.approx((2 * 2.0 + 2 * 12.0) / 4 + 0.5)


def test_slots_of_spread_attention_are_powers_of_two():
    run = ServingRun(
        row_id="a", model=find_model("deepseek-v3"), system="gb200", engine="trtllm", version="",
        prompt_tokens=1024, output_tokens=1024, concurrency=1229, num_prefill=4,
        decode=ServingConfig(dp=32, ep=32), prefill=ServingConfig(dp=4, ep=4),
    )  # fmt: skip
    wide, _ = closed_loop(run, find_engine("trtllm"))
    joint, _ = closed_loop(replace(run, prefill=None), find_engine("trtllm"))
    assert wide.max_batch / wide.concurrency == pytest.approx(32 / (1229 / 32), rel=0.05)
    assert joint.max_batch > joint.concurrency


def test_a_queue_takes_waiting_prompts_together():
    result = run_closed_loop(loop(concurrency=4, requests_per_client=1, prefill=pool()), TIMES)
    assert result.ttft_mean_s == pytest.approx((2 * 3.0 + 2 * 6.0) / 4 + 0.5)


def test_what_prompts_add_is_told_apart():
    result = run_closed_loop(loop(concurrency=2, requests_per_client=1), TIMES)
    assert result.ttft_prompt_s == pytest.approx((2.0 + 4.0) / 2)
    assert result.tpot_prompt_s == pytest.approx(2.0 / 10 / 2)


def test_throughput_bound_of_nanoflow():
    kernels = serving_machine(find_device("a100-80gb")).kernels
    published = {"llama-2-70b": 1857.0, "llama-3-70b": 1850.0, "mixtral-8x7b": 10305.0, "llama-3-8b": 16250.0}
    for name, tokens_per_s in published.items():
        bound = throughput_bound_tokens_per_s(find_model(name), kernels)
        assert bound == pytest.approx(tokens_per_s, rel=0.05)
