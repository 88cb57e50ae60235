# ruff: noqa: E501
"""What the real parsers let through, our checks catch; what the parsers at hand say of right and wrong files."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from planner.emit.emit_plan import emit_plan
from planner.emit.verify.emitted import read_emitted
from planner.emit.verify.slurm import slurm_verdicts
from planner.emit.verify.verdict import Verdict
from planner.emit.verify.verify_folder import own_verdicts, verify_folder
from planner.emit.write import write_emission
from tests.planner.emit.cases import plan_path


def changed(tmp_path: Path, plan: str, target: str, name: str, right: str, wrong: str, **more: Any) -> Path:
    folder = tmp_path / "out"
    tmp_path.mkdir(exist_ok=True)
    write_emission(emit_plan(plan_path(plan), target, **more), folder)
    path = next(iter(sorted(folder.glob(name))))
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong, 1))
    return folder


def problems(verdicts: list[Verdict]) -> str:
    return "\n".join(p for v in verdicts if v.verdict == "fail" for p in v.problems)


@pytest.mark.parametrize(
    ("plan", "target", "name", "right", "wrong", "said"),
    [
        ("sharded", "deepspeed", "ds_config.json", '"gradient_clipping"', '"gradient_cliping"',
         "did you mean gradient_clipping"),
        ("sharded", "accelerate", "accelerate.yaml", "fsdp_reshard_after_forward", "fsdp_reshard_after",
         "fsdp_config.fsdp_reshard_after: not known"),
        ("sharded", "accelerate", "accelerate.yaml", "dp_shard_size: 8", "dp_shard_size: 2",
         "parallelism_config multiplies to 4"),
        ("serve-experts", "sglang", "serve-b200-tp4*.sh", "--tp-size 8", "--tp-size 24", "does not divide 128 heads"),
        ("serve-experts", "sglang", "serve-b200-tp4*.sh", "--max-running", "--mem-fraction-static 1.5\n  --max-running",
         "1.5 lies outside 0 to 1"),
        ("mixtral", "megatron-lm", "train.sh", "--expert-tensor-parallel-size 1",
         "--expert-tensor-parallel-size 4", "expert 8 x expert tensor 4 x pipeline 2 does not divide"),
        ("stages", "megatron-lm", "train.sh", "--pipeline-model-parallel-size 4",
         "--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 7",
         "25 layers do not divide over 3 middle stages"),
        ("stages", "torchtitan", "train.sh", "pipeline_parallel_schedule 1F1B",
         "pipeline_parallel_schedule 2F2B", "'2F2B' is none of"),
    ],
)  # fmt: skip
def test_ours_catch(
    tmp_path: Path, plan: str, target: str, name: str, right: str, wrong: str, said: str
) -> None:
    folder = changed(tmp_path, plan, target, name, right, wrong)
    assert said in problems(own_verdicts(read_emitted(folder)))


def test_ours_catch_unknown_keys_of_ray_serve(tmp_path: Path) -> None:
    names = ("serve_config.yaml", "max_num_seqs", "max_num_sequences")
    folder = changed(tmp_path, "serve-single", "vllm", *names, scheduler="ray")
    assert "max_num_sequences: not known" in problems(own_verdicts(read_emitted(folder)))


def test_uneven_stages_of_torchtitan_are_one_word_each(tmp_path: Path) -> None:
    import json

    document = json.loads(Path(plan_path("stages")).read_text())
    stage = {"group": "a", "tp": 1, "peak_memory_bytes": 1.0}
    document["plans"][0]["stages"] = [stage | {"num_layers": n} for n in (7, 9, 9, 7)]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    write_emission(emit_plan(str(path), "torchtitan"), tmp_path / "out")
    script = (tmp_path / "out" / "train.sh").read_text()
    assert "module_fqns_per_model_part 'tok_embeddings,layers.0," in script
    assert "layers.31,norm,lm_head'\n" in script
    assert problems(own_verdicts(read_emitted(tmp_path / "out"))) == ""
    (tmp_path / "out" / "train.sh").write_text(script.replace(",layers.6'", "'"))
    assert "does not hold (7, 9, 9, 7) layers" in problems(own_verdicts(read_emitted(tmp_path / "out")))


@pytest.mark.skipif(
    shutil.which("sbatch") is None or shutil.which("slurmctld") is None, reason="Slurm is not installed"
)
def test_slurm_accepts_the_batch_script_and_refuses_other_devices(tmp_path: Path) -> None:
    option = "#SBATCH --gpus-per-node=h100:8"
    folder = changed(tmp_path, "mixtral", "megatron-lm", "job.sbatch", option, option, scheduler="slurm")
    (verdict,) = slurm_verdicts(read_emitted(folder))
    assert verdict.verdict == "pass", verdict
    script = folder / "job.sbatch"
    script.write_text(script.read_text().replace(option, "#SBATCH --gpus-per-node=h100:16"))
    (refused,) = slurm_verdicts(read_emitted(folder))
    assert refused.verdict == "fail"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "checker", "plan", "target", "name", "right", "wrong"),
    [
        ("kubernetes_validate", "kubernetes-validate", "serve-fp8", "vllm@kubernetes", "*-fp8.k8s.yaml",
         "readinessProbe", "readynessProbe"),
        ("deepspeed", "deepspeed", "sharded", "deepspeed", "ds_config.json", '"stage": 3', '"stage": 9'),
        ("accelerate", "accelerate", "sharded", "accelerate", "accelerate.yaml", "same_network", "same_net"),
        ("megatron", "megatron-core", "gpt3", "megatron-lm", "train.sh", "batch-size 256", "batch-size 255"),
        ("torchtitan", "torchtitan", "stages", "torchtitan", "train.sh", "degree 4", "degree 3"),
        ("vllm", "vllm", "serve-fp8", "vllm", "serve-*.sh", "--kv-cache-dtype fp8", "--kv-cache-dtype fp7"),
        ("sglang", "sglang", "serve-experts", "sglang", "serve-*.sh", "--ep-size", "--epp-size"),
    ],
)  # fmt: skip
def test_real_parsers(
    tmp_path: Path, package: str, checker: str, plan: str, target: str, name: str, right: str, wrong: str
) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    target, _, scheduler = target.partition("@")
    more = {"scheduler": scheduler} if scheduler else {}
    right_verdicts = verify_folder(changed(tmp_path / "right", plan, target, name, right, right, **more))
    assert [v.verdict for v in right_verdicts if v.checker == checker] == ["pass"], right_verdicts
    wrong_verdicts = verify_folder(changed(tmp_path / "wrong", plan, target, name, right, wrong, **more))
    assert [v.verdict for v in wrong_verdicts if v.checker == checker] == ["fail"]
