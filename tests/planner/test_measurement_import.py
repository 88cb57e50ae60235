import csv
import io
from pathlib import Path

import pytest

from costmodels.samples import read_samples
from hardware.errors import InputError, SpecError
from planner.measurement_import import imported_text, read_training_log
from tests.planner.conftest import Meshwright

NCCL = """\
# nThread 1 nGpus 8 minBytes 8 maxBytes 134217728 step: 2(factor) warmup iters: 5
# all_reduce_perf
#  Rank  0 Group  0 Pid   100 on  node-a device  0 [0x1b] NVIDIA H100 80GB HBM3
#  Rank  1 Group  0 Pid   100 on  node-a device  1 [0x43] NVIDIA H100 80GB HBM3
#       size         count      type   redop    root     time   algbw   busbw #wrong
     1048576        262144     float     sum      -1    25.00   41.94   41.94      0
"""
OSU = """\
# OSU MPI Allgather Latency Test v7.1
# Size       Avg Latency(us)
1024                   10.00
2048                   12.50
"""
MEGATRON = """\
  bf16 ............................................ True
  global_batch_size ............................... 128
  hidden_size ..................................... 4096
  micro_batch_size ................................ 1
  num_layers ...................................... 32
  pipeline_model_parallel_size .................... 2
  sequence_parallel ............................... True
  tensor_model_parallel_size ...................... 4
  world_size ...................................... 16
 iteration 1/ 100 | elapsed time per iteration (ms): 9000.0 | learning rate: 1E-4
 iteration 2/ 100 | elapsed time per iteration (ms): 3000.0 | learning rate: 1E-4
 iteration 3/ 100 | elapsed time per iteration (ms): 2000.0 | learning rate: 1E-4
 iteration 4/ 100 | elapsed time per iteration (ms): 2100.0 | learning rate: 1E-4
 iteration 5/ 100 | elapsed time per iteration (ms): 2200.0 | learning rate: 1E-4
[Rank 0] (after 2 iterations) memory (MB) | allocated: 100.0 | max allocated: 40960.0 | reserved: 1.0
"""
DEEPSPEED = """\
[INFO] zero_optimization_stage .... 3
steps: 1 loss: 10.1 iter time (s): 5.0 samples/sec: 3.2
steps: 2 loss: 9.1 iter time (s): 4.0 samples/sec: 4.0
steps: 3 loss: 8.1 iter time (s): 2.5 samples/sec: 6.4
MA 10.0 GB         Max_MA 31.5 GB         CA 33.0 GB         Max_CA 33 GB
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_nccl_tests_become_samples(tmp_path: Path) -> None:
    text = imported_text("nccl-samples", [write(tmp_path / "a.txt", NCCL)], device="h100")
    sample = read_samples(write(tmp_path / "s.csv", text)).samples[0]
    assert sample.at == {"message_bytes": 1048576, "stride": 1, "degree": 2}
    assert (sample.seconds, sample.kind, sample.device) == (25e-6, "all_reduce", "h100")


def test_osu_counts_what_one_rank_contributes(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", OSU)
    samples = read_samples(
        write(tmp_path / "s.csv", imported_text("osu", [file], device="mi300x", ranks=4))
    ).samples
    assert [s.at["message_bytes"] for s in samples] == [4096, 8192]
    assert [s.seconds for s in samples] == pytest.approx([1e-5, 1.25e-5])
    with pytest.raises(InputError, match="--ranks"):
        imported_text("osu", [file], device="mi300x")


def test_megatron_logs_become_runs(tmp_path: Path) -> None:
    text = imported_text("megatron-log", [write(tmp_path / "run.log", MEGATRON)], device="h100")
    row = next(csv.DictReader(io.StringIO(text)))
    wanted = {
        "tp": "4", "pp": "2", "mbs": "1", "gbs": "128", "layers": "32", "hidden": "4096", "sp": "1",
        "n_gpus": "16", "precision": "bf16", "gpu": "h100", "iter_time_s": "2.1", "mem_gb": "40", "oom": "0",
    }  # fmt: skip
    assert {k: row[k] for k in wanted} == wanted


def test_deepspeed_logs_are_read(tmp_path: Path) -> None:
    log = read_training_log(write(tmp_path / "run.log", DEEPSPEED))
    assert log.step_s == (5.0, 4.0, 2.5)
    assert log.median_s == 2.5
    assert log.memory_bytes == 31.5 * 2**30
    assert log.arguments["zero"] == "3"


def test_a_run_without_memory_is_labelled(tmp_path: Path) -> None:
    log = write(tmp_path / "run.log", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate")
    row = next(csv.DictReader(io.StringIO(imported_text("megatron-log", [log], device="h100"))))
    assert (row["oom"], row["iter_time_s"]) == ("1", "")


def test_other_files_are_refused(meshwright: Meshwright, tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "nothing here")
    with pytest.raises(SpecError, match="no step line"):
        read_training_log(file)
    for kind in ("osu", "nccl-samples", "deepspeed-log"):
        words = ("import", kind, str(file), "--device", "h100", "--ranks", "2")
        assert meshwright(*words).exit_code == 2
    assert "needs --device" in meshwright("import", "osu", str(file)).output
