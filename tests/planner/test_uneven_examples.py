"""The commands of examples/uneven-clusters.md on the files beside it."""

import json
from pathlib import Path

from tests.planner.conftest import Meshwright

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MEASURED = [str(EXAMPLES / "measured" / f"mpigraph-{day}.txt") for day in ("monday", "tuesday")]


def test_measured_links_move_hosts(meshwright: Meshwright, tmp_path: Path) -> None:
    cluster, plan = tmp_path / "eight.yaml", tmp_path / "plan.json"
    made = meshwright("import", "mpigraph", *MEASURED, "--node", "dgx-a100", "-o", str(cluster))
    assert made.exit_code == 0, made.output
    arguments = [
        "--model",
        "gpt3-13b",
        "--cluster",
        str(cluster),
        "--seq-len",
        "2048",
        "--global-batch",
        "512",
    ]
    planned = meshwright("plan", "train", *arguments, "-o", str(plan))
    assert planned.exit_code == 0, planned.output
    document = json.loads(plan.read_text())
    placement = document["plans"][0]["placement"]
    assert placement["gain_frac"] > 0.02  # what is left of it depends on how much of the network is hidden
    assert {rank["host"] for rank in placement["ranks"]} == {f"node{i:02d}" for i in range(8)}
    assert any("90 % interval" in note for note in document["diagnostics"])


def test_old_and_new_devices_share_a_pipeline(meshwright: Meshwright, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    cluster = str(EXAMPLES / "clusters" / "old-and-new.yaml")
    arguments = ["--model", "llama-2-7b", "--cluster", cluster, "--seq-len", "2048", "--global-batch", "256"]
    planned = meshwright("plan", "train", *arguments, "--precision", "fp16", "-o", str(plan))
    assert planned.exit_code == 0, planned.output
    best = json.loads(plan.read_text())["plans"][0]
    assert all(check["holds"] for check in best["certificate"])
    assert sum(stage["num_layers"] for stage in best["stages"]) == 32
    layers = {
        group: [s["num_layers"] for s in best["stages"] if s["group"] == group] for group in ("new", "old")
    }
    assert max(layers["new"]) > max(layers["old"])


def test_import_of_a_bad_file_ends_with_code_2(meshwright: Meshwright, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"gpus": ["a", "b"], "bandwidth": [[0, -1], [1, 0]]}')
    result = meshwright("import", "mpigraph", str(bad), "--node", "dgx-a100", "-o", str(tmp_path / "c.yaml"))
    assert result.exit_code == 2
    assert "a to b is -" in result.output
    assert not (tmp_path / "c.yaml").exists()
