import json
from pathlib import Path

import pytest

from tests.planner.conftest import Meshwright

JOB = {
    "--model": "gpt3-1.3b",
    "--cluster": "dgx-a100",
    "--nodes": "1",
    "--seq-len": "2048",
    "--global-batch": "64",
}


def _words(**changes: object) -> list[str]:
    job = JOB | {"--" + k.replace("_", "-"): str(v) for k, v in changes.items()}
    return ["plan", "train", *(word for pair in job.items() for word in pair)]


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"model": "lama-3.1-70b"}, 2, "llama-3.1-70b"),
        ({"cluster": "dgx-h1000"}, 2, "dgx-h100"),
        ({"stack": "megatron-cor"}, 2, "megatron-core"),
        ({"precision": "bf61"}, 2, "bf16"),
        ({"seq_len": 0}, 2, "seq_len"),
        ({"cluster": "no/such.yaml"}, 2, "no/such.yaml"),
        ({"model": "no/such.json"}, 2, "no/such.json"),
        ({"nodes": 0}, 2, "nodes"),
        ({"global_batch": 7, "nodes": 11, "seq_len": 1023}, 3, "global-batch-divisible"),
        ({"catalog": "/no/such/dir"}, 2, "/no/such/dir"),
        ({"min_fits_probability": 1.5}, 2, "min_fits_probability"),
    ],
)
def test_one_clear_message(meshwright: Meshwright, changes: dict[str, object], code: int, said: str) -> None:
    result = meshwright(*_words(**changes))
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.stdout == ""


def test_an_unknown_device_in_a_cluster_file(meshwright: Meshwright, tmp_path: Path) -> None:
    cluster = tmp_path / "c.yaml"
    cluster.write_text(
        "name: c\ngroups: [{node: mine, count: 1}]\n"
        "nodes:\n  mine:\n    device: h1000\n    parts: []\n    links: []\n",
        encoding="utf-8",
    )
    result = meshwright(*_words(cluster=cluster))
    assert result.exit_code == 2
    assert "h100" in result.stderr
    assert str(cluster) in result.stderr


def test_all_missing_flags_at_once(meshwright: Meshwright) -> None:
    result = meshwright("plan", "train", "--nodes", "1")
    assert result.exit_code == 2
    for key in ("model", "cluster", "seq_len", "global_batch"):
        assert key in result.stderr


def test_unknown_names_are_reported_together(meshwright: Meshwright) -> None:
    result = meshwright(*_words(model="gpt9", cluster="dgx-z"))
    assert result.exit_code == 2
    assert "gpt9" in result.stderr
    assert "dgx-z" in result.stderr


def test_unknown_and_wrong_keys_of_a_request(meshwright: Meshwright, tmp_path: Path) -> None:
    request = tmp_path / "r.yaml"
    request.write_text(
        "model: gpt3-1.3b\nclustr: dgx-a100\nseq_len: long\nglobal_batch: 8\n", encoding="utf-8"
    )
    result = meshwright("plan", "train", "--request", request)
    assert result.exit_code == 2
    assert str(request) in result.stderr
    assert "did you mean cluster" in result.stderr
    assert "'long'" in result.stderr


def test_allow_names_its_wrong_columns_and_values(meshwright: Meshwright, tmp_path: Path) -> None:
    request = tmp_path / "r.yaml"
    request.write_text(
        "{model: gpt3-1.3b, cluster: dgx-a100, nodes: 1, seq_len: 2048, global_batch: 8, "
        "allow: {tpp: [1], recompute: [some]}}",
        encoding="utf-8",
    )
    result = meshwright("plan", "train", "--request", request)
    assert result.exit_code == 2
    assert "allow.tpp" in result.stderr
    assert "none, selective, full" in result.stderr


def test_a_wrong_unit_in_a_cluster_file(meshwright: Meshwright, tmp_path: Path) -> None:
    cluster = tmp_path / "c.yaml"
    cluster.write_text(
        "name: c\ngroups: [{node: dgx-a100, count: 2}]\n"
        "fabrics: [{name: ib, kind: clos, technology: ib, node_bytes_per_s: 100 Gb/s, latency_s: 5 us}]\n",
        encoding="utf-8",
    )
    words = [word for word in _words(cluster=cluster) if word not in ("--nodes", "1")]
    result = meshwright(*words)
    assert result.exit_code == 2
    assert "fabrics.0.node_bytes_per_s" in result.stderr
    assert "100 Gb/s" in result.stderr


def test_estimate_names_every_rule_that_is_broken(meshwright: Meshwright) -> None:
    job = [word for pair in JOB.items() for word in pair]
    result = meshwright("estimate", "train", *job, "--tp", "3", "--pp", "5", "--micro-batch", "7")
    assert result.exit_code == 2
    for rule in ("degrees-multiply-to-the-world", "tp-divides-heads", "global-batch-divisible"):
        assert rule in result.stderr


def test_devices_that_do_not_divide(meshwright: Meshwright) -> None:
    job = [word for pair in JOB.items() for word in pair]
    result = meshwright("estimate", "train", *job, "--tp", "2", "--dp", "3")
    assert result.exit_code == 2
    assert "2 x cp 1 x dp 3 x pp 1 = 6 of 8" in result.stderr


def test_no_legal_strategy_says_what_would_be_legal(meshwright: Meshwright) -> None:
    """1,008 = 2^4 x 3^2 x 7 devices: no product of degrees divides 1,024 sequences and 32 layers."""
    words = ["plan", "train", "--model", "llama-3.1-8b", "--cluster", "gb200-nvl72", "--nodes", "14"]
    words += ["--seq-len", "8192", "--global-batch", "1024"]
    refused = meshwright(*words)
    assert refused.exit_code == 3
    assert "it would with 64 of the 72 devices of every node (devices_per_node)" in refused.stderr
    assert "it would with global_batch 1008" in refused.stderr
    answered = meshwright(*words, "--devices-per-node", "64")
    assert "896 devices in 14 nodes, 224 hosts" in answered.stdout, answered.output


def test_more_devices_than_a_node_has_are_refused(meshwright: Meshwright) -> None:
    refused = meshwright(*_words(), "--devices-per-node", "9")
    assert refused.exit_code == 2
    assert "has 8 devices, 9 cannot be used" in refused.stderr


def test_nothing_fits(meshwright: Meshwright) -> None:
    result = meshwright(*_words(model="gpt3-175b", global_batch=8))
    assert result.exit_code == 3
    assert "the nearest plan" in result.stderr
    assert "bytes) are missing" in result.stderr
    assert "it would fit on" in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "is not a plan file"),
        ("[]", "one JSON object"),
        ('{"schema_version": 999, "kind": "train"}', "newer"),
        ('{"schema_version": "1", "kind": "train"}', "schema_version"),
        ('{"schema_version": 1, "kind": "tea"}', "kind"),
        ('{"schema_version": 1, "kind": "train", "plans": 3}', "plans"),
    ],
)
@pytest.mark.parametrize("verb", [("explain",), ("compare", "{}")])
def test_unreadable_plans(
    meshwright: Meshwright, tmp_path: Path, verb: tuple[str, ...], text: str, said: str
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(text, encoding="utf-8")
    result = meshwright(*(str(plan) if word == "{}" else word for word in verb), plan)
    assert result.exit_code == 2
    assert said in result.stderr
    assert str(plan) in result.stderr


def test_a_missing_plan(meshwright: Meshwright, tmp_path: Path) -> None:
    result = meshwright("explain", tmp_path / "none.json")
    assert result.exit_code == 2
    assert "none.json" in result.stderr


def test_no_half_written_output(meshwright: Meshwright, tmp_path: Path) -> None:
    result = meshwright(*_words(), "-o", tmp_path / "no" / "plan.json")
    assert result.exit_code == 2
    assert "plan.json" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_unknown_schema_and_catalogue_words(meshwright: Meshwright) -> None:
    assert (
        "known: cluster, plan, request" in meshwright("schema", "plane").stderr
        or meshwright("schema", "x").exit_code == 2
    )
    assert meshwright("catalog", "devices", "show").exit_code == 2
    assert meshwright("catalog", "devices", "shwo", "h100").exit_code == 2
    assert "h100" in meshwright("catalog", "devices", "show", "h10").stderr


RUNS = {
    "row_id": "1",
    "source": "s",
    "model": "m",
    "arch": "gpt",
    "hidden": "1024",
    "layers": "4",
    "heads": "16",
    "seq": "1024",
    "vocab": "50257",
    "gpu": "A100",
    "n_gpus": "8",
    "tp": "1",
    "pp": "1",
    "dp": "8",
    "mbs": "1",
    "gbs": "8",
    "iter_time_s": "1.0",
}


def _csv(path: Path, row: dict[str, str]) -> Path:
    path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n", encoding="utf-8")
    return path


def test_backtest_of_a_table_without_a_needed_column(meshwright: Meshwright, tmp_path: Path) -> None:
    row = {k: v for k, v in RUNS.items() if k != "seq"}
    result = meshwright("backtest", "train", _csv(tmp_path / "r.csv", row))
    assert result.exit_code == 2
    assert "seq" in result.stderr


@pytest.mark.parametrize("kind", ["memory", "kernels"])
def test_backtest_of_another_table(meshwright: Meshwright, tmp_path: Path, kind: str) -> None:
    path = _csv(tmp_path / "r.csv", {"a": "1", "b": "2"})
    result = meshwright("backtest", kind, path)
    assert result.exit_code == 2
    assert str(path) in result.stderr


def test_backtest_by_an_unknown_column(meshwright: Meshwright, tmp_path: Path) -> None:
    result = meshwright("backtest", "train", _csv(tmp_path / "r.csv", RUNS), "--by", "colour")
    assert result.exit_code == 2
    assert "colour" in result.stderr


def test_backtest_of_one_run(meshwright: Meshwright, tmp_path: Path) -> None:
    path = _csv(tmp_path / "r.csv", RUNS)
    document = json.loads(meshwright("backtest", "train", path, "--json").stdout)
    assert (document["kind"], document["num_rows"], document["num_predicted"]) == ("train", 1, 1)
    assert document["predictions"][0]["row_id"] == "1"
    assert document["predictions"][0]["iter_time_s"] > 0
    assert "mape" in meshwright("backtest", "train", path).stdout


def test_backtest_rejects_a_bad_cell_by_name(meshwright: Meshwright, tmp_path: Path) -> None:
    result = meshwright("backtest", "train", _csv(tmp_path / "r.csv", RUNS | {"layers": "four"}), "--json")
    if result.exit_code == 0:
        rejected = json.loads(result.stdout)["rejected"]
        assert rejected[0]["row_id"] == "1"
        assert "layers" in rejected[0]["why"]
    else:
        assert result.exit_code == 2
        assert "layers" in result.stderr


@pytest.mark.parametrize("kind", ["train", "memory", "kernels"])
def test_backtest_of_a_missing_file(meshwright: Meshwright, tmp_path: Path, kind: str) -> None:
    result = meshwright("backtest", kind, tmp_path / "none.csv")
    assert result.exit_code == 2
    assert "none.csv" in result.stderr


def test_a_precision_that_the_device_lacks_names_those_it_has(meshwright: Meshwright) -> None:
    result = meshwright(*_words(precision="nvfp4"))
    assert result.exit_code == 2
    assert "precision: 'nvfp4' is not rated on a100-80gb; it runs bf16, fp16, fp32" in result.stderr


def test_a_device_without_bf16_is_costed_in_fp16_and_the_plan_says_so(meshwright: Meshwright) -> None:
    said = "has no bf16: costed at its fp16 rate"
    assert said in meshwright(*_words(cluster="dgx-1v")).stdout
    assert said not in meshwright(*_words(cluster="dgx-1v", precision="fp16")).stdout


def test_mfu_says_what_it_counts_where_sequences_are_long(meshwright: Meshwright) -> None:
    long = meshwright(*_words(model="llama-3.1-8b", seq_len=131072, global_batch=8))
    assert "leaves the masked half of attention out" in long.stdout
    assert "leaves the masked half of attention out" not in meshwright(*_words()).stdout


def test_a_running_job_that_cannot_be_read_is_told_before_any_plan(meshwright: Meshwright) -> None:
    result = meshwright(*_words(), "--compare-with", "no/such.sh")
    assert result.exit_code == 2
    assert "no/such.sh: cannot be read" in result.stderr
    assert result.stdout == ""


def test_a_cluster_file_may_be_json(meshwright: Meshwright, tmp_path: Path) -> None:
    cluster = tmp_path / "c.json"
    cluster.write_text(json.dumps({"name": "c", "groups": [{"node": "dgx-a100", "count": 1}]}))
    assert meshwright(*_words(cluster=cluster)[:-2], "--global-batch", "64").exit_code in (0, 2)
    cluster.write_text(json.dumps({"name": "c"}))
    assert f"{cluster}: groups: is missing" in meshwright(*_words(cluster=cluster)).stderr


def test_a_folder_as_output_leaves_nothing_behind(meshwright: Meshwright, tmp_path: Path) -> None:
    result = meshwright(*_words(), "-o", str(tmp_path))
    assert result.exit_code == 2
    assert f"{tmp_path}: cannot be written: it is a folder; name a file" in result.stderr
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("tp", -4, "tp: -4 is not an integer from 1 up"),
        ("zero", True, "zero: True is not an integer from 0 up"),
        ("overlap_dp", 1, "overlap_dp: 1 is not true or false"),
    ],
)
def test_a_plan_with_an_impossible_strategy(
    meshwright: Meshwright, tmp_path: Path, column: str, value: object, said: str
) -> None:
    document = json.loads(meshwright(*_words(), "--json").stdout)
    document["plans"][0]["strategy"][column] = value
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    result = meshwright("explain", str(path))
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_unknown_kind_of_import_names_all_kinds(meshwright: Meshwright, tmp_path: Path) -> None:
    result = meshwright("import", "foo", str(tmp_path / "x"))
    assert result.exit_code == 2
    assert all(kind in result.stderr for kind in ("mpigraph", "megatron-args", "osu", "vllm"))


def test_simulate_refuses_no_jobs_and_a_folder_as_table(meshwright: Meshwright, tmp_path: Path) -> None:
    fleet = Path(__file__).parents[2] / "examples" / "serving-fleet.yaml"
    words = (
        "simulate", "--fleet", str(fleet), "--workload", "fixed:100x10", "--rate-per-s", "5",
        "--arrivals", "poisson", "--num-requests", "20",
    )  # fmt: skip
    none = meshwright(*words, "--jobs", "0", "--replications", "2")
    assert (none.exit_code, none.stderr) == (
        2, "error: jobs: 0 is no number of jobs; give 1 or more, or -1 for all cores\n",
    )  # fmt: skip
    folder = meshwright(*words, "--requests-csv", str(tmp_path))
    assert folder.exit_code == 2
    assert "it is a folder; name a file" in folder.stderr
