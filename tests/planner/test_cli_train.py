import json
from pathlib import Path

import pytest

from planner.plan_io import read_plan
from tests.planner.conftest import Meshwright

SMALL = (
    "--model",
    "gpt3-1.3b",
    "--cluster",
    "dgx-a100",
    "--nodes",
    "1",
    "--seq-len",
    "2048",
    "--global-batch",
    "64",
)


def test_plan_train_prints_the_best_configurations(meshwright: Meshwright, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    result = meshwright("plan", "train", *SMALL, "-o", plan)
    assert result.exit_code == 0, result.output
    for words in (
        "tokens/s/GPU",
        "MFU",
        "90 % interval",
        "fits",
        "recompute",
        "sharding",
        "searched",
        "excluded",
    ):
        assert words in result.stdout
    file = read_plan(plan)
    best = file.plans[0]
    assert best.strategy.world == 8
    assert all(check.holds for check in best.certificate)
    steps = [p.predicted.step_s for p in file.plans]
    assert steps == sorted(steps)
    assert len(file.plans) == 5


def test_json_is_exactly_the_file(meshwright: Meshwright, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    result = meshwright("plan", "train", *SMALL, "-o", plan, "--json", "--top", "2")
    assert result.stdout == plan.read_text(encoding="utf-8")
    document = json.loads(result.stdout)
    assert list(document)[:4] == ["schema_version", "kind", "request", "plans"]
    assert {"num_configs", "num_feasible", "wall_s", "excluded"} <= set(document["search"])
    predicted = document["plans"][0]["predicted"]
    assert predicted["step_s"] == pytest.approx(sum(predicted["time_parts_s"].values()))
    assert predicted["peak_memory_bytes"] == pytest.approx(sum(predicted["memory_parts_bytes"].values()))
    ranks = document["plans"][0]["placement"]["ranks"]
    assert [r["rank"] for r in ranks] == list(range(8))
    assert set(ranks[0]) == {"rank", "host", "device", "coordinates"}


def test_the_same_request_gives_the_same_bytes(meshwright: Meshwright) -> None:
    def text() -> str:
        document = json.loads(meshwright("plan", "train", *SMALL, "--json").stdout)
        document["search"]["wall_s"] = 0
        return json.dumps(document)

    assert text() == text()


def test_the_front_trades_time_for_memory(meshwright: Meshwright) -> None:
    front = json.loads(meshwright("plan", "train", *SMALL, "--json").stdout)["pareto"]
    times = [p["step_s"] for p in front]
    memory = [p["peak_memory_bytes"] for p in front]
    assert times == sorted(times)
    assert memory == sorted(memory, reverse=True)


def test_a_request_file_and_flags_that_win(meshwright: Meshwright, tmp_path: Path) -> None:
    request = tmp_path / "request.yaml"
    request.write_text(
        "model: gpt3-1.3b\ncluster: dgx-a100\nnodes: 1\nseq_len: 2048\nglobal_batch: 64\nallow: {tp: [2]}\n",
        encoding="utf-8",
    )
    result = meshwright("plan", "train", "--request", request, "--global-batch", "32", "--json")
    document = json.loads(result.stdout)
    assert document["request"]["global_batch"] == 32
    assert {p["strategy"]["tp"] for p in document["plans"]} == {2}


def test_a_config_json_and_a_cluster_file(meshwright: Meshwright, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "model_type": "llama",
                "hidden_size": 1024,
                "intermediate_size": 2816,
                "num_hidden_layers": 8,
                "num_attention_heads": 16,
                "num_key_value_heads": 4,
                "vocab_size": 32000,
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": False,
                "hidden_act": "silu",
            }
        ),
        encoding="utf-8",
    )
    cluster = tmp_path / "mine.yaml"
    cluster.write_text("name: mine\ngroups:\n  - {node: dgx-h100, count: 2}\n", encoding="utf-8")
    result = meshwright(
        "plan",
        "train",
        "--model",
        config,
        "--cluster",
        cluster,
        "--seq-len",
        "2048",
        "--global-batch",
        "32",
        "--json",
    )
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["plans"][0]["placement"]["ranks"]) == 16


def test_estimate_is_the_plan_of_one_configuration(meshwright: Meshwright, tmp_path: Path) -> None:
    found = json.loads(meshwright("plan", "train", *SMALL, "--json", "--top", "1").stdout)["plans"][0]
    s = found["strategy"]
    words = []
    for name, value in s.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words += (
                [flag] if value else [flag.replace("--overlap", "--no-overlap")] * name.startswith("overlap")
            )
        else:
            words += [flag, value]
    out = tmp_path / "one.json"
    result = meshwright("estimate", "train", *SMALL, *words, "--json", "-o", out)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["plans"][0]["predicted"] == found["predicted"]
    assert out.exists()


def test_estimate_costs_what_does_not_fit_and_says_so(meshwright: Meshwright) -> None:
    words = (
        "--model",
        "gpt3-175b",
        "--cluster",
        "dgx-a100",
        "--nodes",
        "1",
        "--seq-len",
        "2048",
        "--global-batch",
        "8",
    )
    result = meshwright("estimate", "train", *words, "--tp", "8", "--zero", "0", "--json")
    plan = json.loads(result.stdout)["plans"][0]
    assert plan["predicted"]["fits_probability"] < 0.01
    assert {c["name"]: c["holds"] for c in plan["certificate"]}["memory-fits"] is False


def test_explain_and_compare(meshwright: Meshwright, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    meshwright("plan", "train", *SMALL, "-o", plan)
    explained = meshwright("explain", plan)
    assert explained.exit_code == 0, explained.output
    for words in ("runner-up", "what each decision is worth", "checked:", "degrees-multiply-to-the-world"):
        assert words in explained.stdout
    margins = json.loads(meshwright("explain", plan, "--json").stdout)["margins"]
    assert all(m["slower_frac"] is None or m["slower_frac"] >= -1e-9 for m in margins)
    compared = meshwright("compare", plan, f"{plan}#2")
    assert "decisions that differ" in compared.stdout
    same = json.loads(meshwright("compare", plan, plan, "--json").stdout)
    assert same["decisions"] == {}
    assert same["step_s"]["first"] == same["step_s"]["second"]
    assert same["asked"] == {}


def test_compare_says_where_the_questions_differ(meshwright: Meshwright, tmp_path: Path) -> None:
    """The same strategy under a power budget is slower, and nothing else in the two plans says why."""
    free, capped = tmp_path / "free.json", tmp_path / "capped.json"
    meshwright("plan", "train", *SMALL, "-o", free)
    budget = 0.6 * 400.0 * read_plan(free).plans[0].strategy.world
    assert meshwright("plan", "train", *SMALL, "--power-budget", str(budget), "-o", capped).exit_code == 0
    shown = meshwright("compare", free, capped).stdout
    assert "questions that differ" in shown
    assert "power_budget_w" in shown
    figures = json.loads(meshwright("compare", free, capped, "--json").stdout)["figures"]
    watts = next(f for f in figures if f["name"] == "watts_per_device")
    assert watts["second"] < watts["first"]


def test_a_plan_says_what_its_interval_counts_in(meshwright: Meshwright, tmp_path: Path) -> None:
    def note(*flags: str) -> str:
        plan = tmp_path / "plan.json"
        assert meshwright("plan", "train", *SMALL, *flags, "-o", plan).exit_code == 0
        return next(n for n in read_plan(plan).diagnostics if n.startswith("the interval is wider"))

    assert "clusters of other owners" in note()
    assert "a stack that was not measured" in note("--stack", "megatron-unfused")
    assert "a device and format without a fitted run" not in note()
    assert "a device and format without a fitted run" in note("--cluster", "mi300x")


def test_a_strategy_beyond_the_measured_runs_is_named(meshwright: Meshwright, tmp_path: Path) -> None:
    def beyond(*flags: str) -> list[str]:
        out = tmp_path / "estimate.json"
        request = (*SMALL, "--stack", "composer-fsdp")
        result = meshwright("estimate", "train", *request, "--micro-batch", "1", *flags, "-o", out)
        assert result.exit_code == 0, result.output
        return [n for n in read_plan(out).diagnostics if n.startswith("beyond the runs")]

    assert beyond("--tp", "1", "--zero", "3") == []
    (note,) = beyond("--tp", "4")
    assert "tp 4 (measured 1 to 1)" in note
