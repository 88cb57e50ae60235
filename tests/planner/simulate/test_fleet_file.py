import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hardware.errors import InfeasibleError, SpecError
from planner.cli.main import build_app
from planner.simulate.asked_trace import AskedTrace
from planner.simulate.fleet_file import read_fleet
from planner.simulate.report import Question, run_question
from planner.simulate.settings import Batching, Role

COEFFICIENTS = "{prefill: [0.01, 0.0001, 0], decode_small: [0.01, 1.0e-6, 0.0001]}"
FLEET = f"""
router: round-robin
pools:
  - name: main
    count: 2
    engine: {{coefficients: {COEFFICIENTS}, kv_tokens: 20000, usd_per_hour: "2 USD/h", max_seqs: 32}}
"""
TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
    f"{0.1 * i:.1f},{20 + i},{1 + i % 7}\n" for i in range(60)
)


def write(folder: Path, text: str, name: str = "fleet.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(["simulate"]), ["simulate", *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def test_a_fleet_file_becomes_pools(tmp_path: Path) -> None:
    fleet = read_fleet(write(tmp_path, FLEET))
    assert fleet.router == "round-robin"
    assert (fleet.pools[0].count, fleet.pools[0].engine.settings.max_seqs) == (2, 32)
    assert fleet.pools[0].engine.usd_per_hour == 2.0


def test_split_roles_links_and_rules_are_read(tmp_path: Path) -> None:
    engine = f"coefficients: {COEFFICIENTS}, kv_tokens: 20000, policy: prefill-first"
    text = f"""
shared_link: {{bytes_per_s: 10 GB/s, latency_s: 5 us}}
failures: [{{pool: d, engine: 0, at_s: 1 s, down_s: 2 s}}]
pools:
  - {{name: p, engine: {{{engine}, role: prefill, link_bytes_per_s: 1 GB/s, kv_bytes_per_token: 1000}}}}
  - name: d
    max_count: 3
    start_up_s: 30 s
    reactive: {{interval_s: 10 s, add_above: 20, remove_below: 5}}
    schedule: [[60, 2]]
    engine: {{{engine}, role: decode, speculative_tokens: 2, acceptance_frac: 0.5}}
"""
    fleet = read_fleet(write(tmp_path, text))
    assert [p.engine.role for p in fleet.pools] == [Role.PREFILL, Role.DECODE]
    assert fleet.pools[0].engine.settings.batching is Batching.PREFILL_FIRST
    assert fleet.pools[1].engine.settings.step_tokens == 3
    assert fleet.shared_link is not None


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("router: round-robin", "router: fastest", "router: 'fastest' is no router"),
        ("kv_tokens: 20000, ", "", "kv_tokens: is missing"),
        (f"coefficients: {COEFFICIENTS}, ", "", "exactly one of device, profile and coefficients"),
        ("max_seqs: 32", "max_seqs: 0", "pools.0.engine: max_seqs must be at least 1"),
        ("max_seqs: 32", "max_seq: 32", "unexpected key"),
        ("max_seqs: 32", "policy: fifo", "'fifo' is unknown"),
        ("2 USD/h", "2 EUR/h", "not a quantity in USD/h"),
        ("count: 2", "count: 0", "pools.0.count: 0 is too small"),
        ("count: 2", "schedule: [[5, 1], [3, 2]]", "the times of schedule must rise"),
        ("max_seqs: 32", "tp: 0", "pools.0.engine.tp: 0 is too small"),
        ("max_seqs: 32", "acceptance_frac: 0.5", "speculative_tokens 0 with acceptance_frac 0.5; give both"),
        ("max_seqs: 32", "lora_rank: 8", "num_adapters 0 with lora_rank 8; give both"),
        ("0.01, 0.0001, 0]", ".nan, 0, 0]", "coefficients.prefill.0: nan is not accepted"),
        ("round-robin", "size", "router size with 0 rows of shares"),
        (
            "round-robin",
            "size\nshares: [[10, 10, [0.5, 0.5]]]",
            "shares.0: 0.5, 0.5; one for each of 1 pools",
        ),
        ("round-robin", "random\nmean_time_between_failures_s: 0", "mean_time_between_failures_s must be"),
        ("max_seqs: 32", "run_ahead: maybe", "pools.0.engine.run_ahead: 'maybe' is not accepted"),
    ],
)
def test_wrong_fleets_name_the_key(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = write(tmp_path, FLEET.replace(old, new))
    with pytest.raises(SpecError) as caught:
        read_fleet(path)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("tp: 3", "pools.0.engine: tp: 3 is not accepted for llama-3.1-8b; tensor parallelism must divide"),
        ("ep: 2, tp: 2", "pools.0.engine: ep: 2 for llama-3.1-8b, which has no experts"),
        ("stack: vlm", "pools.0.engine: no serving engine is called 'vlm'; did you mean vllm"),
        ("cap_w: 1", "pools.0.engine: cap_w: 1 is below the "),
    ],
)
def test_catalogue_engines_that_cannot_be_are_refused_with_their_key(
    tmp_path: Path, entry: str, told: str
) -> None:
    text = f"pools: [{{name: a, engine: {{model: llama-3.1-8b, device: h100, {entry}}}}}]"
    path = write(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        read_fleet(path)
    assert f"{path}: {told}" in str(caught.value)


def test_a_catalogue_engine_works_out_its_cache(tmp_path: Path) -> None:
    text = "pools: [{name: a, engine: {model: llama-3.1-8b, device: h100}}]"
    engine = read_fleet(write(tmp_path, text)).pools[0].engine
    # 80 GiB, of which 90 % may be used; 16.1 GB of weights, a reserve, and 131,072 B per token.
    assert 400_000 < engine.kv_tokens < (0.9 * 80 * 2**30 - 16.1e9) / 131_072
    assert engine.timer.decode_s(1, 100.0) == pytest.approx(16e9 / 3.35e12, rel=0.6)
    with pytest.raises(InfeasibleError, match="leaves no cache"):
        read_fleet(write(tmp_path, text.replace("8b", "70b").replace("h100", "l4")))


def test_simulate_prints_the_file_and_writes_requests(tmp_path: Path) -> None:
    fleet, trace = write(tmp_path, FLEET), write(tmp_path, TRACE, "t.csv")
    rows, line = tmp_path / "rows.csv", tmp_path / "line.json"
    code, out, _ = run(
        "--fleet",
        fleet,
        "--trace",
        trace,
        "--slo-ttft-s",
        1,
        "--requests-csv",
        rows,
        "--timeline",
        line,
        "--json",
    )
    assert code == 0
    answer = json.loads(out)
    assert answer["num_requests"] == 60
    assert answer["slo_attainment_frac"] == 1.0
    assert answer["requests_per_s"] <= answer["rate_bound_per_s"]
    assert answer["cost_usd"] == pytest.approx(2 * 2.0 * answer["span_s"] / 3600)
    assert len(rows.read_text().splitlines()) == 61
    assert len(json.loads(line.read_text())["at_s"]) == 200
    assert run("--fleet", fleet, "--trace", trace, "--slo-ttft-s", 1, "--json")[1] == out
    code, out, _ = run("--fleet", fleet, "--trace", trace, "--slo-ttft-s", 1)
    assert code == 0
    assert "kept" in out


def test_replications_from_the_command_line(tmp_path: Path) -> None:
    fleet, trace = write(tmp_path, FLEET), write(tmp_path, TRACE, "t.csv")
    question = Question(fleet=fleet, traffic=AskedTrace(path=trace), replications=3, targets={"ttft_s": 1.0})
    found = run_question(question)["replications"]
    assert found["num_replications"] == 3
    assert found["ttft_s.p99"]["low"] < found["ttft_s.p99"]["mean"] < found["ttft_s.p99"]["high"]


def test_goodput_from_the_command_line(tmp_path: Path) -> None:
    fleet, trace = write(tmp_path, FLEET), write(tmp_path, TRACE, "t.csv")
    code, out, _ = run("--fleet", fleet, "--trace", trace, "--slo-ttft-s", 0.2, "--goodput", "--json")
    assert code == 0
    found = json.loads(out)["goodput"]
    assert 0 < found["rate_per_s"] <= found["bound_per_s"]
    assert found["span_s"] < found["settling_s"]
    _, out, _ = run("--fleet", fleet, "--trace", trace, "--slo-ttft-s", 0.2, "--goodput")
    assert "too few requests for queues to settle, so this is an upper bound" in out


def test_bad_questions_have_exit_code_2_and_say_what_is_wrong(tmp_path: Path) -> None:
    fleet, trace = write(tmp_path, FLEET), write(tmp_path, TRACE, "t.csv")
    bad = write(tmp_path, TRACE.replace("0.1,", "-3,"), "bad.csv")
    for words, told in (
        (("--trace", trace), "either a PLAN or --fleet"),
        (("--fleet", fleet), "--trace: is missing"),
        (("--fleet", fleet, "--trace", bad), "line 3: arrival_s: -3"),
        (("--fleet", fleet, "--trace", trace, "--goodput"), "needs a target"),
        (("--fleet", fleet, "--trace", trace, "--warm-up-s", 100), "no arrival is left"),
        (
            ("--fleet", fleet, "--trace", trace, "--percentile", 120, "--slo-ttft-s", 1),
            "percentile is in percent",
        ),
        ((write(tmp_path, '{"kind": "train"}', "p.json"), "--trace", trace), "cannot be simulated"),
        ((write(tmp_path, "{", "q.json"), "--trace", trace), "no JSON"),
    ):
        code, _, error = run(*words)
        assert (code, told in error) == (2, True), error


def test_a_serving_plan_can_be_simulated(tmp_path: Path) -> None:
    config = {
        "tp": 1,
        "max_batch": 64,
        "token_budget": 1024,
        "chunked": True,
        "weights": "bf16",
        "draft_tokens": 1,
    }
    entry = {
        "device": "h100",
        "role": "both",
        "config": config,
        "devices_per_instance": 1,
        "usd_per_hour": 3.0,
    }
    plan = {
        "kind": "serve",
        "request": {"model": "llama-3.1-8b", "slo_ttft_s": 1.0, "percentile": 95.0, "accepted_tokens": 0.7},
        "plans": [
            {
                "strategy": {"engine": "vllm"},
                "mix": [{"name": "one", "count": 1} | entry, {"name": "two", "count": 2} | entry],
                "routing": [
                    {
                        "prompt_tokens_up_to": 50,
                        "output_tokens_up_to": None,
                        "role": "both",
                        "shares": {"one": 1.0},
                    },
                    {
                        "prompt_tokens_up_to": None,
                        "output_tokens_up_to": None,
                        "role": "both",
                        "shares": {"two": 1.0},
                    },
                ],
            }
        ],
    }
    path, trace = write(tmp_path, json.dumps(plan), "plan.json"), write(tmp_path, TRACE, "t.csv")
    code, out, error = run(path, "--trace", trace, "--json")
    assert code == 0, error
    answer = json.loads(out)
    assert [pool["requests"] for pool in answer["pools"]] == [31, 29]
    assert answer["slo"]["percentile"] == 95.0
    assert answer["cost_usd_per_hour"] == pytest.approx(9.0)
    del plan["plans"][0]["mix"][0]["config"], plan["plans"][0]["mix"][0]["usd_per_hour"]
    code, _, error = run(write(tmp_path, json.dumps(plan), "plan.json"), "--trace", trace)
    assert code == 2
    assert "usd_per_hour" in error


def test_the_shipped_example_is_a_fleet() -> None:
    path = Path(__file__).parents[3] / "examples" / "serving-fleet.yaml"
    assert [pool.name for pool in read_fleet(path).pools] == ["prefill", "decode"]
