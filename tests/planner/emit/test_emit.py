"""The verb itself, its caveats, and everything that can be wrong with what it is given."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hardware.errors import InputError
from planner.emit.emission import Emission
from planner.emit.emit_plan import emit_plan
from planner.emit.targets import find_target
from planner.emit.verify.emitted import read_emitted
from planner.emit.verify.verify_folder import own_verdicts
from planner.emit.write import write_emission
from tests.planner.conftest import Meshwright
from tests.planner.emit.cases import plan_path


def test_writes_files_and_names_them(tmp_path: Path, meshwright: Meshwright) -> None:
    folder = tmp_path / "new" / "out"
    result = meshwright("emit", plan_path("gpt3"), "--target", "megatron-lm", "-o", folder)
    assert result.exit_code == 0, result.output
    assert str(folder / "train.sh") in result.stdout
    assert (folder / "train.sh").stat().st_mode & 0o111
    assert not (folder / "env.sh").stat().st_mode & 0o111
    assert (folder / "plan.json").read_text() == Path(plan_path("gpt3")).read_text()
    manifest = json.loads((folder / "emission.json").read_text())
    assert manifest["plan_sha256"] in (folder / "train.sh").read_text()


def test_version_is_part_of_the_target() -> None:
    assert find_target("megatron-lm@0.19")[1] == "0.19"
    assert find_target("vllm@0.33.0")[1] == "0.33"
    assert find_target("megatron")[0] == "megatron-lm"
    with pytest.raises(InputError, match=r"version '0\.1' is not known; known: 0\.33"):
        find_target("vllm@0.1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--target", "megatron-ml"), "did you mean megatron-lm"),
        (("--target", "vlm"), "did you mean vllm"),
        (("--target", "megatron-lm@9"), "version '9' is not known"),
        (("--target", "megatron-lm", "--scheduler", "slrm"), "did you mean slurm"),
        (("--target", "vllm"), "target vllm starts serve plans"),
        (("--target", "fsdp"), "target fsdp has no tp 8, pp 8, vpp 6"),
        (("--target", "mindspeed"), "runs on Ascend devices, the plan is for a100-80gb"),
        (("--target", "torchtitan"), "no torchtitan configuration is known"),
    ],
)
def test_wrong_target(tmp_path: Path, meshwright: Meshwright, words: tuple[str, ...], said: str) -> None:
    result = meshwright("emit", plan_path("gpt3"), *words, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def changed(tmp_path: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    document = json.loads(Path(plan_path(name)).read_text())
    change(document)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(schema_version=99), "schema_version 99 is newer than this Meshwright"),
        (lambda d: d["request"].update(cluster="dgx-h100"), "which cluster dgx-h100 of its request does not"),
        (lambda d: d["request"].update(cluster="no-such"), "no-such"),
        (lambda d: d["request"].update(model="gpt9"), "gpt9"),
        (lambda d: d["request"].update(nodes=2), "does not have"),
        (lambda d: d["plans"][0]["placement"].update(ranks=[]), "do not name every position"),
        (lambda d: d["plans"][0]["strategy"].update(tp=4), "do not name every position"),
    ],
)
def test_wrong_plan(tmp_path: Path, meshwright: Meshwright, change: object, said: str) -> None:
    path = changed(tmp_path, "gpt3", change)
    result = meshwright("emit", path, "--target", "megatron-lm", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["plans"][0]["mix"][0]["config"].update(tpp=2), "tpp: unexpected key"),
        (lambda d: d["plans"][0]["mix"][0]["config"].update(tp=0), "tp: 0 is not at least 1"),
        (lambda d: d["plans"][0]["mix"][0]["config"].update(kv="fp7"), "'fp7' is none of"),
        (lambda d: d["plans"][0]["mix"][0]["config"].update(ep=3), "ep: 3 does not divide"),
        (lambda d: d["plans"][0]["routing"][0].update(shares={"x": 1.0}), "'x' is no entry of the mix"),
        (lambda d: d["plans"][0]["mix"][0].update(device="h999"), "h999"),
    ],
)
def test_wrong_serving_plan(tmp_path: Path, meshwright: Meshwright, change: object, said: str) -> None:
    path = changed(tmp_path, "serve-single", change)
    result = meshwright("emit", path, "--target", "vllm", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("lines", "said"),
    [("a\nb\n", "names 2 hosts"), ("a\na\n", "once each"), ("a b\n", "no host name"), ("", "at least one")],
)
def test_wrong_host_file(tmp_path: Path, meshwright: Meshwright, lines: str, said: str) -> None:
    (tmp_path / "hosts").write_text(lines)
    words = ("--target", "megatron-lm", "--hosts", tmp_path / "hosts", "-o", tmp_path / "out")
    result = meshwright("emit", plan_path("gpt3"), *words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_other_missing_things(tmp_path: Path, meshwright: Meshwright) -> None:
    missing = meshwright("emit", tmp_path / "no.json", "--target", "vllm", "-o", tmp_path / "out")
    assert missing.exit_code == 2
    third = meshwright("emit", f"{plan_path('gpt3')}#3", "--target", "megatron-lm", "-o", tmp_path / "out")
    assert "there is no plan #3" in third.stderr


def test_folder_in_use_and_unwritable(tmp_path: Path) -> None:
    emission = Emission(files={"a": "text\n"})
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("keep")
    with pytest.raises(InputError, match="not empty"):
        write_emission(emission, tmp_path / "used")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_emission(emission, tmp_path / "file" / "out")
    too_long = Emission(files={"a": "text\n", "b" * 300: "text\n"})
    with pytest.raises(InputError, match="cannot be written"):
        write_emission(too_long, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "used"]


def test_strict_refuses_what_would_be_lost(tmp_path: Path, meshwright: Meshwright) -> None:
    words = ("--target", "sglang", "-o", tmp_path / "out")
    loose = meshwright("emit", plan_path("serve-split"), *words)
    assert "caveat: routing by request size" in loose.stderr
    assert "Not expressed: engine vllm" in (tmp_path / "out" / "serve-prefill-h100-tp2-bf16.sh").read_text()
    strict = meshwright(
        "emit", plan_path("serve-split"), "--strict", "--target", "sglang", "-o", tmp_path / "b"
    )
    assert strict.exit_code == 2
    assert "routing by request size" in strict.stderr
    exact = meshwright("emit", plan_path("gpt3"), "--strict", "--target", "megatron", "-o", tmp_path / "c")
    assert exact.exit_code == 0


def test_recomputed_layers_per_chunk(tmp_path: Path) -> None:
    def change(document: dict) -> None:
        document["plans"][0]["strategy"].update(recompute="full", recompute_layers=7)

    emission = emit_plan(str(changed(tmp_path, "gpt3", change)), "megatron-lm")
    assert "--recompute-num-layers 2" in emission.files["train.sh"]
    assert [c.feature for c in emission.caveats] == ["strategy.recompute_layers 7"]


def test_stages_of_different_tensor_degree_are_refused(tmp_path: Path) -> None:
    def change(document: dict) -> None:
        stage = {"group": "a", "num_layers": 16, "peak_memory_bytes": 1.0}
        document["plans"][0]["stages"] = [stage | {"tp": 1}, stage | {"tp": 2}]

    with pytest.raises(Exception, match="stages have tensor degrees 1 and 2"):
        emit_plan(str(changed(tmp_path, "stages", change)), "megatron-lm")


@pytest.mark.parametrize("target", ["vllm", "sglang", "tensorrt-llm"])
@pytest.mark.parametrize("scheduler", ["shell", "slurm", "kubernetes", "skypilot"])
def test_instances_of_several_machines(tmp_path: Path, target: str, scheduler: str) -> None:
    def change(document: dict) -> None:
        document["plans"][0]["mix"][0]["config"].update(tp=8, pp=2)

    path = changed(tmp_path, "serve-single", change)
    emission = emit_plan(str(path), target, scheduler=scheduler)
    write_emission(emission, tmp_path / "out")
    verdicts = own_verdicts(read_emitted(tmp_path / "out"))
    assert [v for v in verdicts if v.verdict != "pass"] == []
    script = next(text for name, text in emission.files.items() if name.startswith("serve-"))
    assert "NODE_RANK" in script
    assert ("ARGS+=(--headless)" in script) == (target == "vllm")
    if scheduler == "kubernetes":
        assert "kind: LeaderWorkerSet" in emission.files["a100-80gb-tp1-bf16.k8s.yaml"]


def test_attention_groups_over_several_machines(tmp_path: Path) -> None:
    def change(document: dict) -> None:
        document["plans"][0]["mix"][0]["config"].update(tp=2, dp=8)

    files = emit_plan(str(changed(tmp_path, "serve-single", change)), "vllm").files
    script = files["serve-a100-80gb-tp1-bf16.sh"]
    assert "--data-parallel-size 8\n" in script
    assert "--data-parallel-size-local 4\n" in script
    assert '--data-parallel-start-rank "$((NODE_RANK * 4))"' in script


def test_power_commands_ride_along(tmp_path: Path, meshwright: Meshwright) -> None:
    power = tmp_path / "power.json"
    made = meshwright("plan", "power", "--plan", plan_path("serve-single"), "-o", power)
    assert made.exit_code == 0, made.output
    words = ("--target", "vllm", "--power-plan", power, "-o", tmp_path / "out")
    result = meshwright("emit", plan_path("serve-single"), *words)
    assert result.exit_code == 0, result.output
    assert list((tmp_path / "out" / "power").rglob("*.sh"))
    wrong = meshwright("emit", plan_path("serve-single"), *words[:3], plan_path("gpt3"), "-o", tmp_path / "b")
    assert wrong.exit_code == 2
    assert "takes a plan of `plan power`" in wrong.stderr


def test_python_files_compile() -> None:
    for plan, target in (("sharded", "fsdp"), ("sharded", "deepspeed"), ("serve-single", "vllm")):
        for name, text in emit_plan(plan_path(plan), target).files.items():
            if name.endswith(".py"):
                compile(text, name, "exec")
    compile(emit_plan(plan_path("gpt3"), "megatron-lm", scheduler="ray").files["ray_driver.py"], "r", "exec")
    assert sys.version_info >= (3, 11)


def test_fused_attention_is_asked_for_where_a_kernel_is_written(
    tmp_path: Path, meshwright: Meshwright
) -> None:
    """A plan on 910A was costed without; CANN's fused attention starts with the 910B."""
    job = ("--model", "gpt3-1.3b", "--nodes", "1", "--seq-len", "2048", "--global-batch", "32", "--tp", "8")
    for cluster, asked in (("atlas-910a", False), ("atlas-910b", True)):
        plan, folder = tmp_path / f"{cluster}.json", tmp_path / cluster
        words = ("estimate", "train", "--cluster", cluster, "--precision", "fp16", *job, "-o", plan)
        assert meshwright(*words).exit_code == 0
        written = meshwright("emit", plan, "--target", "mindspeed", "-o", folder)
        assert written.exit_code == 0, written.output
        assert ("--use-flash-attn" in (folder / "train.sh").read_text()) is asked
