import numpy as np
import pytest

from costmodels.models import find_model
from costmodels.serving.config import ServingConfig, ServingTable
from costmodels.serving.engine import find_engine
from costmodels.serving.iteration import iteration_cost
from costmodels.serving.lora import lora_bytes, lora_s
from costmodels.serving.machine import serving_machine
from costmodels.serving.memory import serving_memory
from costmodels.serving.operators import IterationWork
from hardware.catalog import find_device

MODEL = find_model("llama-2-7b")
MACHINE = serving_machine(find_device("a100-80gb"))


def table(**changes):
    return ServingTable.from_configs([ServingConfig(**changes)])


def test_bytes_of_an_adapter_by_hand():
    # Llama-2-7B: q, k, v, o are 4096 x 4096; gate, up 4096 x 11008; down 11008 x 4096; 32 layers.
    features = 4 * (4096 + 4096) + 3 * (4096 + 11008)
    assert lora_bytes(MODEL, table(lora_rank=16, num_adapters=10))[0] == 2 * 10 * 16 * 32 * features
    assert lora_bytes(MODEL, table(lora_rank=16, num_adapters=10, tp=2))[0] > 10 * 16 * 32 * features
    assert lora_bytes(MODEL, table())[0] == 0.0


def test_time_counts_each_adapter_that_a_batch_uses_once():
    def seconds(seqs, num_adapters, rank=16, tokens=None):
        rows = table(lora_rank=rank, num_adapters=num_adapters)
        return lora_s(
            MODEL,
            rows,
            tokens=np.array([float(tokens or seqs)]),
            seqs=np.array([float(seqs)]),
            device=MACHINE.device,
        )[0]

    launches = 32 * 4 * 2 * 1.6e-6
    assert seconds(1, 1) == pytest.approx(launches, rel=0.3)
    read = lora_bytes(MODEL, table(lora_rank=16, num_adapters=64))[0] / (
        0.5 * MACHINE.device.memory_bytes_per_s
    )
    assert seconds(10_000, 64, tokens=64) == pytest.approx(launches + read, rel=1e-6)
    assert launches < seconds(8, 64) < seconds(64, 64) < seconds(256, 64)
    assert seconds(64, 8) < seconds(64, 64)
    assert seconds(64, 0) == 0.0


def test_adapters_slow_an_iteration_and_take_cache():
    engine, work = find_engine("vllm"), IterationWork.of(0, 0, 32, 32 * 1024)
    plain, with_them = table(), table(lora_rank=32, num_adapters=32)
    slow = iteration_cost(MODEL, with_them, engine, MACHINE, work)
    fast = iteration_cost(MODEL, plain, engine, MACHINE, work)
    assert slow.iteration_s[0] - fast.iteration_s[0] == pytest.approx(slow.adapters_s[0])
    assert fast.adapters_s[0] == 0.0
    sizes = {"device_bytes": 80e9, "memory_frac": 0.9, "reserve_bytes": 1e9}
    left = serving_memory(MODEL, plain, **sizes).kv_budget_bytes[0]
    less = serving_memory(MODEL, with_them, **sizes).kv_budget_bytes[0]
    assert left - less == pytest.approx(lora_bytes(MODEL, with_them)[0])
