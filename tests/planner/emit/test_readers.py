"""Round trip: what was emitted reads back as the strategy that was planned, and can be costed."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from hardware.errors import InputError, SpecError
from planner.emit.emit_plan import emit_plan
from planner.emit.readers import read_running_job
from planner.emit.running_job_text import estimate_command
from planner.emit.write import write_emission
from planner.plan_io import read_plan
from tests.planner.conftest import Meshwright
from tests.planner.emit.cases import plan_path


def emitted(tmp_path: Path, plan: str, target: str) -> Path:
    write_emission(emit_plan(plan_path(plan), target), tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("plan", ["gpt3", "uneven", "mixtral", "deepseek", "context", "tensor", "stages"])
def test_megatron_round_trip(tmp_path: Path, plan: str) -> None:
    job = read_running_job("megatron-args", emitted(tmp_path, plan, "megatron-lm") / "train.sh")
    file = read_plan(plan_path(plan))
    planned = file.plans[0].strategy
    # What a degree of one cannot show comes back as off.
    if planned.dp * planned.cp == 1:
        planned = replace(planned, overlap_dp=False)
    assert job.strategy == replace(planned, overlap_pp=planned.vpp > 1)
    assert job.request["seq_len"] == file.request["seq_len"]
    assert job.request["global_batch"] == file.request["global_batch"]
    assert job.request["precision"] == file.request["precision"]


def test_deepspeed_round_trip(tmp_path: Path) -> None:
    job = read_running_job("deepspeed", emitted(tmp_path, "full", "deepspeed") / "ds_config.json")
    assert job.strategy == read_plan(plan_path("full")).plans[0].strategy


def test_vllm_round_trip(tmp_path: Path) -> None:
    path = next(iter(sorted(emitted(tmp_path, "serve-fp8", "vllm").glob("serve-*.sh"))))
    job = read_running_job("vllm", path)
    planned = read_plan(plan_path("serve-fp8")).plans[0].mix[0].config
    assert {k: v for k, v in planned.items() if k in job.serving} == dict(job.serving)
    assert job.request == {"model": "meta-llama/Llama-3.1-70B"}


def test_a_script_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "run.sh"
    path.write_text(
        "#!/bin/bash\nTP=8\nexport PP=4\n# --tensor-model-parallel-size 2\n"
        'DISTRIBUTED="--nproc_per_node 8 --nnodes 8"\n'
        "MODEL_ARGS=(--num-layers 96 --hidden-size 12288 \\\n  --num-attention-heads 96)\n"
        'torchrun $DISTRIBUTED pretrain_gpt.py "${MODEL_ARGS[@]}" --tensor-model-parallel-size $TP \\\n'
        "  --pipeline-model-parallel-size=${PP} --micro-batch-size 1 --global-batch-size 64 \\\n"
        "  --seq-length 2048 --bf16 --sequence-parallel --recompute-activations --unknown 3\n"
    )
    job = read_running_job("megatron-args", path)
    assert job.strategy is not None
    s = job.strategy
    assert (s.tp, s.pp, s.dp, s.sequence_parallel, s.zero) == (8, 4, 2, True, 0)
    assert s.recompute.name == "SELECTIVE"
    assert "--tp 8 --pp 4 --dp 2" in estimate_command(job)


def test_chunks_of_a_layout_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "run.sh"
    path.write_text(
        "x --num-layers 8 --pipeline-model-parallel-size 2 --micro-batch-size 1 --global-batch-size 8 "
        "--seq-length 64 --pipeline-model-parallel-layout 'Et*2|(t*2|)*2t*2L'\n"
    )
    job = read_running_job("megatron-args", path)
    assert job.strategy is not None
    assert job.strategy.vpp == 2
    assert job.ignored == ("--pipeline-model-parallel-layout",)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("megatron-args", "echo hello\n", "holds no options"),
        ("megatron-args", "x --num-layers 4\n", "--micro-batch-size: is missing"),
        ("megatron-args", "x --num-layers $N --micro-batch-size 1\n", "variables are not followed"),
        ("deepspeed", "{", "is no JSON"),
        ("deepspeed", "[]", "one JSON object"),
        ("deepspeed", '{"train_batch_size": "auto"}', "train_batch_size: is missing or no integer"),
        (
            "deepspeed",
            '{"train_batch_size": 8, "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 7}}',
            "stage: 7 is none of",
        ),
        ("vllm", "vllm serve m --tensor-parallel-size two\n", "'two' is not an integer"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, kind: str, text: str, said: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(SpecError, match=re.escape(said)):
        read_running_job(kind, path)
    with pytest.raises(InputError, match="cannot be read"):
        read_running_job(kind, tmp_path / "none")


def test_import_verb(tmp_path: Path, meshwright: Meshwright) -> None:
    script = emitted(tmp_path, "tensor", "megatron-lm") / "train.sh"
    result = meshwright("import", "megatron-args", script)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("# meshwright estimate train ")
    command = result.stdout.splitlines()[0].removeprefix("# meshwright ").replace("CLUSTER", "dgx-h100")
    words = command.replace("MODEL", "llama-3.1-70b").split()
    costed = meshwright(*words, "--nodes", 2, "--json")
    assert costed.exit_code == 0, costed.output
    planned = read_plan(plan_path("tensor")).plans[0]
    assert json.loads(costed.stdout)["plans"][0]["strategy"]["vpp"] == planned.strategy.vpp


def test_compare_with_what_runs_today(tmp_path: Path, meshwright: Meshwright) -> None:
    script = emitted(tmp_path, "stages", "megatron-lm") / "train.sh"
    asked = ("plan", "train", "--model", "llama-3.1-8b", "--cluster", "dgx-h100", "--nodes", 1)
    result = meshwright(*asked, "--seq-len", 2048, "--global-batch", 64, "--compare-with", script)
    assert result.exit_code == 0, result.output
    assert "runs today: predicted step" in result.stdout
    assert "pp" in result.stdout
    other = meshwright(*asked, "--seq-len", 2048, "--global-batch", 32, "--compare-with", script)
    assert other.exit_code == 2
    assert "its global_batch is 64, the request's 32" in other.stderr
