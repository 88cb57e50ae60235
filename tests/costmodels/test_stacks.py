from dataclasses import replace

import numpy as np
import pytest

from costmodels.job import TrainingJob
from costmodels.kernels.fit import TreeSettings, fit_trees
from costmodels.kernels.portable import portable_attention_ratio
from costmodels.kernels.times import kernel_model
from costmodels.keys import Keys
from costmodels.models import find_model
from costmodels.reference_stack import REFERENCE_STACK
from costmodels.run_table import RunRow
from costmodels.stacks import FITTED, Stack, device_stack, find_stack, stack_names
from costmodels.strategy import ConfigTable, Strategy
from costmodels.training.evaluate import evaluate, training_inputs
from costmodels.training.learned import FEATURES, Correction, box_of, find_correction
from costmodels.training.stack_choice import stack_of_run
from costmodels.training.stack_fit import StackSamples, family, fit_stacks, predict_stacks
from costmodels.training.step_time import step_parts
from hardware.catalog import find_cluster, find_device
from hardware.errors import UnknownNameError
from tests.costmodels.cases import cluster, gpt_job


@pytest.mark.parametrize("name", stack_names())
def test_every_stack_states_what_it_does_and_on_what_evidence(name: str) -> None:
    stack = find_stack(name)
    assert stack.summary
    assert stack.evidence
    assert all(getattr(stack, n) > 0 for n in FITTED)
    assert 0 < stack.sigma < 1


def test_device_factor_scales_matmul_only() -> None:
    stack = replace(Stack(name="x"), adjust=(("h100/bf16", 1.2),))
    assert stack.on("h100", "bf16").gemm == pytest.approx(1.2)
    assert stack.on("h100", "bf16").vector == 1.0
    assert stack.on("a100-80gb", "bf16").gemm == 1.0


def test_device_without_a_factor_borrows_that_of_the_same_dies() -> None:
    stack = replace(Stack(name="x"), adjust=(("h100/bf16", 1.2),))
    assert stack.on("h100-pcie", "bf16").gemm == pytest.approx(1.2)
    assert stack.on("h100-pcie", "fp8").gemm == 1.0


def test_portable_attention_falls_behind_on_later_devices() -> None:
    """FlashAttention-2 runs at 335 TFLOP/s on H100 without a mask and twice as fast as the first version."""
    job = replace(gpt_job(), seq_len=16384)
    table = ConfigTable.from_strategies([Strategy(tp=8, dp=2)])
    times = {}
    for device in ("a100-80gb", "h100"):
        inputs = training_inputs(job, cluster(device=device), table)
        for kernel in ("native", "flash1", "flash2"):
            stack = Stack(name="x", attention_kernel=kernel)
            times[device, kernel] = float(step_parts(inputs, stack).forward_s[0])
    assert times["h100", "flash1"] > times["h100", "flash2"] > 1.1 * times["h100", "native"]
    assert times["a100-80gb", "flash1"] > times["a100-80gb", "flash2"]
    assert times["a100-80gb", "flash2"] < 1.05 * times["a100-80gb", "native"]


def test_portable_attention_reaches_its_published_rate() -> None:
    kernels = kernel_model(find_device("h100"))
    shape = {"batch": 1, "q_len": 16384, "kv_len": 16384, "heads": 32, "kv_heads": 32, "head_dim": 128}
    native_s = float(kernels.attention_s(**shape) + kernels.attention_backward_s(**shape))
    flops = 3.5 * 32 * 16384 * 16385 / 2 * 4 * 128
    rate = flops / (native_s * portable_attention_ratio(kernels, "flash2"))
    assert rate == pytest.approx(335e12 * 335 / 370, rel=1e-3)


def test_unknown_coefficient_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="gem"):
        Stack(name="x").with_fitted({"gem": 1.0})


def _row(**values: str) -> RunRow:
    from collections import Counter

    return RunRow(values=values, where="t", line=2, filled=Counter())


@pytest.mark.parametrize(
    ("values", "stack"),
    [
        ({"source": "vTrain-multi", "kernel": "megatron-fused-softmax"}, "megatron-deepspeed-2021"),
        ({"source": "Megatron-Bridge", "source_ref": "docs [25.11 NeMo Container]"}, "megatron-core-25.09"),
        ({"source": "Megatron-Bridge", "source_ref": "docs [26.02 NeMo Container]"}, "megatron-core-26.02"),
        ({"source": "Megatron-Bridge", "source_ref": "docs [26.04 NeMo Container]"}, "megatron-core-26.04"),
        ({"source": "dgxc-benchmarking", "source_ref": "v25.02 nemotron/README.md"}, "megatron-core-24.11"),
        ({"source": "dgxc-benchmarking", "source_ref": "v25.05.05 grok1/README.md"}, "megatron-core-25.04"),
        ({"source": "Megatron-Bridge", "source_ref": "docs [26.08 NeMo Container]"}, "megatron-core"),
        ({"source": "elsewhere", "kernel": "flash_attention2 + RMSNorm kernel"}, "megatron-flash2-rms"),
        ({"source": "elsewhere", "kernel": "torch"}, "megatron-unfused"),
        ({"source": "elsewhere", "kernel": "megatron-fused-softmax", "arch": "gpt"}, "megatron-2021"),
        (
            {"source": "elsewhere", "kernel": "megatron-fused-softmax", "arch": "llama"},
            "megatron-fused-softmax",
        ),
        ({"source": "elsewhere", "kernel": "flash2", "arch": "gpt"}, "megatron-flash2-rms"),
        ({"source": "elsewhere", "kernel": "flash2", "arch": "llama"}, "megatron-flash2"),
        ({"source": "elsewhere", "gpu": "H100", "zero": "3"}, "fsdp2"),
        ({"source": "elsewhere", "gpu": "A100", "sp": "1"}, "megatron-2022"),
    ],
)
def test_stack_of_a_run(values: dict[str, str], stack: str) -> None:
    assert stack_of_run(_row(**values)) == stack


def test_family_drops_the_version() -> None:
    assert family("megatron-core-26.02") == "megatron-core"
    assert family("megatron-core") == "megatron-core"
    assert family("nemo-mlperf") == "nemo-mlperf"


def test_fit_recovers_a_slower_stack_from_its_runs() -> None:
    """Runs made by a stack with slow attention and slow gradient reduction are explained by those two."""
    strategies = [
        Strategy(tp=tp, dp=16 // tp, micro_batch=b, zero=1) for tp in (1, 2, 4, 8) for b in (1, 2, 4)
    ]
    inputs = training_inputs(gpt_job(), cluster(), ConfigTable.from_strategies(strategies))
    believed = Stack(name="made-up", overlap_gradients=False)
    truth = replace(believed, attention=2.0, dp_comm=1.8)
    samples = StackSamples(
        inputs=inputs,
        measured_s=step_parts(inputs, truth).total_s,
        stack=np.array(["made-up"] * len(strategies)),
        key=np.array(["a100-80gb/bf16"] * len(strategies)),
        unmeasured=frozenset(),
    )
    rows = np.arange(len(strategies))
    fitted, pooled = fit_stacks({"made-up": believed}, samples, rows)
    predicted = predict_stacks(fitted, pooled, samples, rows)
    assert np.abs(predicted / samples.measured_s - 1).max() < 0.03
    assert fitted["made-up"].attention > 1.4
    assert fitted["made-up"].dp_comm > 1.4


def test_a_stack_without_runs_moves_with_the_measured_ones() -> None:
    """Hosts slower than assumed on a measured stack are expected of one never measured; its kernels stay."""
    strategies = [Strategy(tp=8, dp=2, micro_batch=1), Strategy(tp=4, dp=4, micro_batch=1)] * 20
    inputs = training_inputs(
        replace(gpt_job(), seq_len=256), cluster(), ConfigTable.from_strategies(strategies)
    )
    believed = Stack(name="seen", host_s_per_op=5e-5)
    samples = StackSamples(
        inputs=inputs,
        measured_s=step_parts(inputs, replace(believed, host_s_per_op=1.5e-4)).total_s,
        stack=np.array(["seen"] * len(strategies)),
        key=np.array(["a100-80gb/bf16"] * len(strategies)),
        unmeasured=frozenset(),
    )
    bases = {"seen": believed, "unseen": Stack(name="unseen", host_s_per_op=1e-5)}
    fitted, _ = fit_stacks(bases, samples, np.arange(len(strategies)))
    assert fitted["seen"].host_s_per_op > 1e-4
    assert 1.1e-5 < fitted["unseen"].host_s_per_op < 3e-5
    assert fitted["unseen"].attention == 1.0


def test_correction_is_silent_outside_its_box() -> None:
    rng = np.random.default_rng(0)
    features = rng.uniform(1.0, 2.0, size=(300, len(FEATURES)))
    target = 0.3 * (features[:, 0] > 1.5)
    low, high = box_of(features)
    settings = TreeSettings(num_trees=40, depth=3, learning_rate=0.2)
    correction = Correction(
        trees=fit_trees(features, target, settings), low=low, high=high, sigma=0.1, sigma_many=0.2
    )
    assert np.abs(correction.log_ratio(features) - target).mean() < 0.05
    outside = features.copy()
    outside[:, FEATURES.index("hidden")] = 99.0
    assert not correction.covers(outside).any()
    assert (correction.log_ratio(outside) == 0).all()


def test_a_stack_without_evidence_has_no_correction() -> None:
    assert find_correction("megatron-unfused") is None


def test_keys_gather_back_every_row() -> None:
    a, b = np.array([3, 1, 3, 1]), np.array([0, 2, 0, 5])
    keys = Keys.of(a, b)
    assert len(keys.first) == 3
    assert (a[keys.first][keys.inverse] == a).all()
    assert (b[keys.first][keys.inverse] == b).all()


def test_fused_attention_runs_where_there_is_a_kernel_for_it():
    """V100 and Ascend 910A come before FlashAttention 2, cuDNN's fused attention and CANN's."""
    for name in ("v100-32gb", "ascend-910a"):
        assert not device_stack("megatron-core", find_device(name)).flash
    for name in ("a100-80gb", "mi250x", "ascend-910b", "tpu-v4"):
        assert device_stack("megatron-core", find_device(name)) == find_stack("megatron-core")
    for name in ("megatron-2021", REFERENCE_STACK):
        assert device_stack(name, find_device("v100-32gb")) == find_stack(name)


def test_scores_of_unfused_attention_are_counted_on_a_v100():
    """96 heads of 8,192 squared scores over tensor degree 8 in 2 bytes are 1.6 GB per layer and sequence."""
    job = TrainingJob(model=find_model("gpt3-175b"), seq_len=8192, global_batch=16, precision="fp16")
    row = ConfigTable.from_strategies([Strategy(tp=8, pp=2, zero=1, sequence_parallel=True)])
    older = evaluate(job, find_cluster("dgx-1v", 2), row)
    newer = evaluate(job, find_cluster("dgx-a100-40gb", 2), row)
    scores = 96 / 8 * 8192.0**2 * 2
    assert (older.peak_memory_bytes - newer.peak_memory_bytes)[0] > 48 * scores
