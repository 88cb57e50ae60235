"""Traffic, backends, failures and pictures of `meshwright simulate`, from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from hardware.errors import InputError, SpecError, UnknownNameError
from planner.cli.main import build_app
from planner.plan_io import write_plan
from planner.serving.flow import plan_serving
from planner.serving.request import read_serve_request
from planner.simulate.asked_trace import AskedTrace
from planner.simulate.parallel import workers

FLEET = """
pools:
  - name: a
    count: 2
    engine:
      kv_tokens: 60000
      coefficients: {prefill: [0.01, 1.0e-4, 0], decode_small: [0.01, 1.0e-6, 1.0e-4]}
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET, encoding="utf-8")
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    gaps = rng.exponential(np.where(np.arange(600) // 60 % 2 == 0, 0.1, 0.6))
    columns = (np.cumsum(gaps), rng.integers(10, 300, 600), rng.integers(2, 40, 600))
    rows = [f"{t:.4f},{p},{o}" for t, p, o in zip(*columns, strict=True)]
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n", encoding="utf-8")
    return path


def run(*words: object) -> tuple[int, str]:
    told = [str(w) for w in words]
    result = CliRunner().invoke(build_app(told), told)
    return result.exit_code, result.output


def test_every_kind_of_arrivals_can_be_asked_for(fleet: Path, trace: Path) -> None:
    seen = {}
    for arrivals in ("replay", "poisson", "gamma", "weibull", "bursts", "sessions"):
        code, text = run("simulate", "--fleet", fleet, "--trace", trace, "--arrivals", arrivals, "--json")
        assert code == 0, text
        seen[arrivals] = json.loads(text)
    assert all(abs(a["num_requests"] - 600) < 150 for a in seen.values())
    assert seen["sessions"]["prefix_hit_frac"] > 0.1
    assert seen["replay"]["prefix_hit_frac"] == 0.0
    made = {name: AskedTrace(path=trace, arrivals=name).trace(0) for name in ("poisson", "bursts")}
    assert made["bursts"].arrival_cv > made["poisson"].arrival_cv


def test_conversations_that_do_not_build_up_to_the_asked_rate_say_so(fleet: Path, trace: Path) -> None:
    words = ("simulate", "--fleet", fleet, "--trace", trace, "--rate-per-s", "20")
    assert "asked" not in run(*words)[1]
    shown = " ".join(run(*words, "--arrivals", "sessions")[1].split())
    assert "of 20 /s asked" in shown


def test_a_named_workload_needs_no_trace(fleet: Path) -> None:
    words = ("simulate", "--fleet", fleet, "--workload", "azure-conv", "--rate-per-s", "3", "--json")
    code, text = run(*words, "--num-requests", "200")
    assert code == 0
    assert json.loads(text)["num_requests"] == 200
    code, text = run(*words)
    assert code == 2
    assert "--num-requests" in text


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({}, SpecError, "--trace"),
        ({"path": Path("t.csv"), "workload": "azure-conv"}, SpecError, "either"),
        ({"path": Path("t.csv"), "arrivals": "fractal"}, UnknownNameError, "bursts"),
        ({"workload": "azure-conv", "arrivals": "bursts"}, SpecError, "needs a --trace"),
        ({"path": Path("t.csv"), "arrivals": "sessions", "think_s": 0.0}, SpecError, "think-s"),
    ],
)
def test_wrong_traffic_is_named(asked: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        AskedTrace(**asked).trace(0)


def test_replications_run_on_the_backend_that_is_named(fleet: Path, trace: Path) -> None:
    words = (
        "simulate",
        "--fleet",
        fleet,
        "--trace",
        trace,
        "--num-requests",
        100,
        "--replications",
        3,
        "--json",
    )
    answers = [run(*words, "--backend", "threading", "--jobs", jobs) for jobs in (1, 2)]
    assert answers[0] == answers[1]
    assert json.loads(answers[0][1])["replications"]["num_replications"] == 3
    code, text = run(*words, "--backend", "carrier-pigeon")
    assert code == 2
    assert "loky" in text
    with pytest.raises(UnknownNameError), workers("pigeon"):
        pass


def test_a_backend_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("planner.simulate.parallel.import_module", missing)
    with pytest.raises(InputError, match="distributed is not installed"), workers("dask"):
        pass
    with pytest.raises(InputError, match="ray is not installed"), workers("ray"):
        pass


def test_failures_cost_restarts_and_lose_no_request(fleet: Path, trace: Path) -> None:
    words = ("simulate", "--fleet", fleet, "--trace", trace, "--json")
    calm = json.loads(run(*words)[1])
    code, text = run(*words, "--mean-time-between-failures-s", 20, "--repair-s", 5)
    assert code == 0
    assert json.loads(text)["num_restarts"] > calm["num_restarts"] == 0
    assert json.loads(text)["num_counted"] == 600
    shown = run(*words[:-1], "--mean-time-between-failures-s", 20, "--repair-s", 5)[1]
    assert f"restarts after failures {json.loads(text)['num_restarts']}" in " ".join(shown.split())


def test_the_timeline_is_a_picture_if_asked_for(fleet: Path, trace: Path, tmp_path: Path) -> None:
    picture = tmp_path / "run.svg"
    assert run("simulate", "--fleet", fleet, "--trace", trace, "--timeline", picture)[0] == 0
    text = picture.read_text(encoding="utf-8")
    assert text.startswith("<svg")
    assert text.count("<polyline") == 5
    assert "waiting" in text


def test_the_fleet_of_a_plan_becomes_a_file_to_change(trace: Path, tmp_path: Path) -> None:
    flags = {
        "model": "llama-3.1-8b", "gpus": ("a100-80gb",), "workload": "fixed:512x128", "rate_per_s": 4.0,
        "slo_ttft_s": 2.0, "slo_tpot_s": 0.1, "simulate": False, "form": "joint",
    }  # fmt: skip
    plan, written = tmp_path / "plan.json", tmp_path / "mine.yaml"
    write_plan(plan_serving(read_serve_request(None, flags)), plan)
    no_trace = tmp_path / "t.csv"
    assert run("simulate", plan, "--trace", no_trace, "--write-fleet", written)[0] == 2
    assert not written.exists()
    assert run("simulate", plan, "--write-fleet", written) == (0, f"written: {written}\n")
    first = run("simulate", plan, "--trace", trace, "--write-fleet", written, "--json")
    assert first[0] == 0
    assert run("simulate", "--fleet", written, "--trace", trace, "--write-fleet", written)[0] == 2
    entry = yaml.safe_load(written.read_text(encoding="utf-8"))
    second = json.loads(run("simulate", "--fleet", written, "--trace", trace, "--json")[1])
    assert second["e2e_s"] == json.loads(first[1])["e2e_s"]
    entry["pools"][0] |= {
        "max_count": 4,
        "reactive": {"interval_s": "5 s", "add_above": 3, "remove_below": 1},
    }
    written.write_text(yaml.safe_dump(entry), encoding="utf-8")
    scaled = json.loads(run("simulate", "--fleet", written, "--trace", trace, "--json")[1])
    assert scaled["pools"][0]["engines"] == 4
