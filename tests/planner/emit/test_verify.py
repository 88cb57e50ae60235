# ruff: noqa: E501
"""What emit writes passes every own check, and one wrong value fails: the mutation tests."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from planner.emit.emit_plan import emit_plan
from planner.emit.verify.emitted import read_emitted
from planner.emit.verify.megatron_rules import layout_layers, megatron_problems
from planner.emit.verify.value_forms import shape_problems, text_problem
from planner.emit.verify.verify_folder import own_verdicts, verify_folder
from planner.emit.write import write_emission
from tests.planner.conftest import Meshwright
from tests.planner.emit.cases import CASES, plan_path


def emitted(tmp_path: Path, plan: str, target: str, scheduler: str | None = None) -> Path:
    folder = tmp_path / "out"
    write_emission(emit_plan(plan_path(plan), target, scheduler=scheduler), folder)
    return folder


@pytest.mark.parametrize(("plan", "target", "scheduler"), CASES)
def test_every_emission_passes_our_checks(
    tmp_path: Path, plan: str, target: str, scheduler: str | None
) -> None:
    verdicts = own_verdicts(read_emitted(emitted(tmp_path, plan, target, scheduler)))
    assert [v for v in verdicts if v.verdict != "pass"] == []
    assert len(verdicts) >= 4


MUTATIONS = [
    ("gpt3", "megatron-lm", None, "train.sh", "--sequence-parallel", "--sequence-paralel"),
    ("gpt3", "megatron-lm", None, "train.sh", "--tensor-model-parallel-size 8", "--tensor-model-parallel-size 5"),
    ("gpt3", "megatron-lm", None, "train.sh", "--global-batch-size 256", "--global-batch-size 257"),
    ("gpt3", "megatron-lm", None, "train.sh", "--num-attention-heads 96", "--num-attention-heads 90"),
    ("mixtral", "megatron-lm", None, "train.sh", "  --use-distributed-optimizer\n", ""),
    ("gpt3", "megatron-lm", None, "train.sh", "--nnodes 8", "--nnodes 4"),
    ("gpt3", "megatron-lm", None, "train.sh", "--micro-batch-size 1", "--micro-batch-size one"),
    ("gpt3", "megatron-lm", None, "train.sh", "  --bf16\n", "  --bf16 --fp16\n"),
    ("gpt3", "megatron-lm", None, "ranks.tsv", "9\tdgx-a100-1\t1", "9\tdgx-a100-2\t1"),
    ("gpt3", "megatron-lm", None, "hosts.txt", "dgx-a100-1\n", ""),
    ("gpt3", "megatron-lm", None, "plan.json", '"pp": 8', '"pp":  8'),
    ("uneven", "megatron-lm", None, "train.sh", "Et*5|t*6", "Et*7|t*6"),
    ("uneven", "megatron-lm", None, "train.sh", "--recompute-method block", "--recompute-method blocks"),
    ("uneven", "megatron-lm", None, "train.sh", "--fp8-recipe delayed", "--fp8-recipe late"),
    ("mixtral", "megatron-lm", None, "train.sh", "--expert-model-parallel-size 8", "--expert-model-parallel-size 3"),
    ("mixtral", "megatron-lm", None, "train.sh", "--expert-tensor-parallel-size 1", "--expert-tensor-parallel-size 8"),
    ("mixtral", "megatron-lm", "kubernetes", "jobset.yaml", "completionMode: Indexed", "completionMod: Indexed"),
    ("mixtral", "megatron-lm", "kubernetes", "jobset.yaml", "restartPolicy: Never", "restartPolicy: Sometimes"),
    ("mixtral", "megatron-lm", "skypilot", "task.yaml", "num_nodes: 4", "num_nodes: four"),
    ("mixtral", "megatron-bridge", None, "train.sh", "tensor_model_parallel_size=2", "tensor_model_parallel_size=two"),
    ("gpt3", "megatron-bridge", None, "train.sh", "model.context_parallel_size", "model.contxt_parallel_size"),
    ("ascend-tensor", "mindspeed", None, "train.sh", "--use-ascend-mc2", "--use-ascend-mc3"),
    ("sharded", "deepspeed", None, "ds_config.json", '"zero_optimization"', '"zero_optimisation"'),
    ("sharded", "deepspeed", None, "ds_config.json", '"train_batch_size": 64', '"train_batch_size": 60'),
    ("sharded", "deepspeed", None, "ds_config.json", '"stage": 3', '"stage": 4'),
    ("sharded", "accelerate", None, "accelerate.yaml", "dp_shard_size: 8", "dp_shard_size: 4"),
    ("sharded", "accelerate", None, "accelerate.yaml", "fsdp_offload_params", "fsdp_ofload_params"),
    ("sharded", "accelerate", None, "accelerate.yaml", "num_processes: 16", "num_processes: 15"),
    ("sharded", "fsdp", None, "settings.json", '"shard": 8', '"shard": 4'),
    ("tensor", "torchtitan", None, "train.sh", "Interleaved1F1B", "FOOBAR"),
    ("tensor", "torchtitan", None, "train.sh", "tensor_parallel_degree 4", "tensor_parallel_degree 2"),
    ("stages", "torchtitan", None, "train.sh", "  --training.disable_cuda_graphs\n", ""),
    ("serve-fp8", "vllm", None, "serve-*.sh", "--tensor-parallel-size 2", "--tensor-parallel-size 3"),
    ("serve-fp8", "vllm", None, "serve-*.sh", "--kv-cache-dtype fp8", "--kv-cache-dtype fp7"),
    ("serve-fp8", "vllm", None, "serve-*.sh", "--enable-chunked-prefill", "--disable-chunked-prefil"),
    ("serve-single", "vllm", None, "serve-*.sh", "--max-num-seqs 1024", "--max-num-seqs 100000"),
    ("serve-split", "vllm", None, "serve-prefill-h100-tp2-bf16.sh", "kv_producer", "kv_prefill"),
    ("serve-split", "vllm", None, "router.json", "prefill-h100-tp4-bf16", "prefill-h100-tp5-bf16"),
    ("serve-mix", "vllm", None, "instances.tsv", "h100-tp1-bf16\t1\tboth\th100-tp1-bf16-1\t8001\n", ""),
    ("serve-single", "vllm", "ray", "serve_config.yaml", "engine_kwargs", "engine_kwarg"),
    ("serve-single", "vllm", "ray", "serve_config.yaml", "tensor_parallel_size", "tensor_paralel_size"),
    ("serve-single", "vllm", "kubernetes", "*-bf16.k8s.yaml", "readinessProbe", "readynessProbe"),
    ("serve-experts", "sglang", None, "serve-b200-tp4*.sh", "--ep-size 8", "--ep-size 7"),
    ("serve-experts", "sglang", None, "serve-b200-tp4*.sh", "--attn-dp-size 2", "--attn-dp-size 3"),
    ("serve-trt", "tensorrt-llm", None, "h100*.yaml", "free_gpu_memory_fraction: 0.9", "free_gpu_memory_fraction: 1.5"),
    ("serve-trt", "tensorrt-llm", None, "h100*.yaml", "tensor_parallel_size: 2", "tensor_parallel_size: 3"),
    ("serve-split", "dynamo", None, "deployment.yaml", "type: decode", "type: decoder"),
    ("serve-mix", "llm-d", None, "values.yaml", "modelCommand: vllmServe", "modelCommand: vllm"),
]  # fmt: skip


@pytest.mark.parametrize(("plan", "target", "scheduler", "name", "right", "wrong"), MUTATIONS)
def test_one_wrong_value_fails(
    tmp_path: Path, plan: str, target: str, scheduler: str | None, name: str, right: str, wrong: str
) -> None:
    folder = emitted(tmp_path, plan, target, scheduler)
    path = next(iter(sorted(folder.glob(name))))
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong, 1))
    assert "fail" in [v.verdict for v in own_verdicts(read_emitted(folder))]


def test_receipt_and_exit_codes(tmp_path: Path, meshwright: Meshwright) -> None:
    folder = emitted(tmp_path, "gpt3", "megatron-lm")
    assert meshwright("verify", folder, "--no-parsers").exit_code == 0
    receipt = json.loads((folder / "verify.json").read_text())
    assert receipt["target"] == "megatron-lm"
    assert {v["verdict"] for v in receipt["verdicts"]} == {"pass"}
    (folder / "train.sh").write_text((folder / "train.sh").read_text().replace("--bf16", "--bf17"))
    failed = meshwright("verify", folder, "--no-parsers")
    assert failed.exit_code == 2
    assert "did you mean --bf16?" in failed.stdout


def test_a_missing_parser_is_skipped_and_not_passed(tmp_path: Path) -> None:
    folder = emitted(tmp_path, "serve-single", "vllm")
    verdicts = verify_folder(folder, pythons=[str(tmp_path / "no-python")])
    assert next(v for v in verdicts if v.checker == "vllm").verdict == "skip"


def test_verify_wants_an_emission(tmp_path: Path, meshwright: Meshwright) -> None:
    result = meshwright("verify", tmp_path)
    assert result.exit_code == 2
    assert "meshwright emit" in result.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize(
    ("plan", "target", "scheduler"),
    [("gpt3", "megatron-lm", "slurm"), ("sharded", "deepspeed", None), ("serve-split", "sglang", None),
     ("serve-fp8", "vllm", "slurm"), ("uneven", "megatron-lm", "ray")],
)  # fmt: skip
def test_scripts_are_clean(tmp_path: Path, plan: str, target: str, scheduler: str | None) -> None:
    folder = emitted(tmp_path, plan, target, scheduler)
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".sh", ".sbatch"))
    done = subprocess.run(
        ["shellcheck", "-x", *names], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("layout", "layers"),
    [("Et*7|t*9|t*9|t*7L", [7, 9, 9, 7]), ("Et|(tt|)*2t,mL", [1, 2, 2, 1]), ("EtL", [1])],
)
def test_layout_language(layout: str, layers: list[int]) -> None:
    assert layout_layers(layout) == layers


def test_megatron_uneven_ends() -> None:
    values = {
        "--num-layers": "32",
        "--pipeline-model-parallel-size": "4",
        "--decoder-first-pipeline-num-layers": "6",
        "--decoder-last-pipeline-num-layers": "6",
        "--micro-batch-size": "1",
        "--global-batch-size": "4",
    }
    assert megatron_problems(values, 4) == []
    values["--decoder-last-pipeline-num-layers"] = "7"
    assert megatron_problems(values, 4) == ["19 layers do not divide over 2 middle stages"]


@pytest.mark.parametrize(
    ("text", "form", "fine"),
    [("3", "int>=1", True), ("0", "int>=1", False), ("x", "int", False), ("0.5", "float 0..1", True),
     ("1.5", "float 0..1", False), ("a", "a|b", True), ("c", "a|b", False), ("{}", "json", True),
     ("{", "json", False), ("$X", "int>=1", True)],
)  # fmt: skip
def test_forms_of_values(text: str, form: str, fine: bool) -> None:
    assert (text_problem(text, form) is None) == fine


def test_forms_of_mappings() -> None:
    form = {"a": "int>=1", "b~": ["bool"]}
    assert shape_problems({"a": 1, "b": [True]}, form) == []
    assert shape_problems({"aa": 1}, form) == ["aa: not known (did you mean a?)", "a: is missing"]
    assert shape_problems({"a": True}, form) == ["a: True is not of the form int>=1"]
