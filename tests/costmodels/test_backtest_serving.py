"""Serving points read from a table and compared with predictions."""

import json
from pathlib import Path

import numpy as np
import pytest

from costmodels.backtest.serving import backtest_serving, latency_errors
from costmodels.serving.correction import (
    LoopLatency,
    PointKind,
    fit_serving_correction,
    serving_correction,
)
from costmodels.serving.runs import read_serving_runs, run_of_row
from hardware.errors import InputError, SpecError

RUNS = Path(__file__).parents[2].parent / "shared" / "data" / "serving" / "serving_runs.csv.gz"
ROW = {
    "id": "r", "backend": "vllm", "model_path": "meta-llama/Llama-3.1-8B-Instruct", "system": "h100_sxm",
    "precision": "bf16", "mode": "agg", "isl": "1024", "osl": "128", "batch_size": "8", "tp_size": "2",
    "silicon_ttft_ms": "100", "silicon_tpot_ms": "8",
}  # fmt: skip
GROUPS = {
    "campaign": "c", "engine": "e", "generation": "g", "device": "d", "attention": "narrow",
    "lengths": "even",
}  # fmt: skip


def write(path, rows):
    columns = list(rows[0])
    lines = [",".join(columns), *(",".join(r.get(c, "") for c in columns) for r in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_plain_row_is_taken_as_it_stands():
    run = run_of_row(ROW)
    assert (run.concurrency, run.decode.tp, run.decode.dp, run.prefill) == (8, 2, 1, None)
    assert run.assumed == ()
    assert run.tpot_s == pytest.approx(0.008)


def test_products_of_degrees_are_undone_and_named():
    row = ROW | {
        "model_path": "deepseek-ai/DeepSeek-R1",
        "tp_size": "64",
        "moe_tp_size": "8",
        "moe_ep_size": "8",
    }
    run = run_of_row(row)
    assert (run.decode.tp, run.decode.ep) == (8, 8)
    assert any("products" in note for note in run.assumed)


def test_clients_come_from_the_tag_first():
    assert run_of_row(ROW | {"source_tag": "x; silicon_concurrency=32"}).concurrency == 32


def test_split_rows_keep_given_workers_and_guess_missing_ones():
    split = ROW | {
        "mode": "disagg", "model_path": "deepseek-ai/DeepSeek-R1",
        "prefill_tp_size": "4", "decode_tp_size": "8",
        "source_tag": "silicon_concurrency=28",
    }  # fmt: skip
    guessed = run_of_row(split)
    assert guessed.num_decode == 4
    assert guessed.assumed
    given = run_of_row(split | {"decode_num_workers": "2", "prefill_num_workers": "3"})
    assert (given.num_decode, given.num_prefill) == (2, 3)


def test_report_has_every_row_predicted_or_rejected(tmp_path):
    path = write(tmp_path / "runs.csv", [ROW, ROW | {"id": "s", "model_path": "no/such-model"}])
    report = backtest_serving(path, by="engine").to_json()
    assert report["num_rows"] == 2
    assert [p["row_id"] for p in report["predictions"]] == ["r"]
    assert report["rejected"][0]["row_id"] == "s"
    assert "no/such-model" in report["rejected"][0]["why"]
    assert set(report["predictions"][0]) == {"row_id", "ttft_s", "tpot_s", "throughput_tokens_per_s"}
    json.dumps(report, allow_nan=False)


def test_bad_tables_are_named(tmp_path):
    with pytest.raises(InputError):
        read_serving_runs(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_text("id,isl\nx,1\n", encoding="utf-8")
    with pytest.raises(SpecError, match="backend"):
        read_serving_runs(tmp_path / "a.csv")
    with pytest.raises(InputError, match="grouped by"):
        backtest_serving(write(tmp_path / "b.csv", [ROW]), by="colour")


def test_errors_of_pairs_by_hand():
    errors = latency_errors([(1.1, 1.0), (0.8, 1.0), (1.0, None)])
    assert errors["num_rows"] == 2
    assert errors["mape_frac"] == pytest.approx(0.15)
    assert errors["signed_median_frac"] == pytest.approx(-0.05)


def test_correction_finds_a_planted_rule_and_is_neutral_for_the_unseen():
    kind = PointKind(split=False, guessed=False, load=1, busy=False, **GROUPS)
    rng = np.random.default_rng(0)
    loop, step = rng.uniform(0.1, 2.0, 200), rng.uniform(0.005, 0.05, 200)
    loops = [LoopLatency(ttft_s=x, ttft_median_s=x, tpot_s=y) for x, y in zip(loop, step, strict=True)]
    fitted = fit_serving_correction(
        [kind] * 200, loops, ttft_s=1.5 * loop + 20 * step, tpot_s=step, weight=np.ones(200)
    )
    seen = LoopLatency(ttft_s=1.0, ttft_median_s=1.0, tpot_s=0.02)
    assert fitted.ttft_s(kind, seen) == pytest.approx(1.9, rel=0.1)
    assert fitted.tpot_s(kind, 0.02) == 0.02
    other = PointKind(split=True, guessed=True, load=1, busy=False, **GROUPS)
    assert serving_correction().tpot_s(other, 1.0) > 0.0


def test_correction_tells_rarer_polls_and_the_first_wave_apart():
    kinds = [PointKind(split=False, guessed=False, load=1, busy=bool(i % 2), **GROUPS) for i in range(200)]
    rng = np.random.default_rng(0)
    steady, burst, step = (rng.uniform(low, 20 * low, 200) for low in (0.05, 0.05, 0.005))
    loops = [
        LoopLatency(ttft_s=x + y, ttft_median_s=x, tpot_s=z)
        for x, y, z in zip(steady, burst, step, strict=True)
    ]
    busy = np.array([kind.busy for kind in kinds])
    fitted = fit_serving_correction(
        kinds,
        loops,
        ttft_s=steady + 0.5 * burst + (5 + 10 * busy) * step,
        tpot_s=step,
        weight=np.full(200, 100.0),
    )
    seen = LoopLatency(ttft_s=0.4, ttft_median_s=0.2, tpot_s=0.02)
    assert fitted.ttft_s(kinds[0], seen) == pytest.approx(0.4, rel=0.05)
    assert fitted.ttft_s(kinds[1], seen) == pytest.approx(0.6, rel=0.05)


@pytest.mark.skipif(not RUNS.exists(), reason="needs ../shared/data/serving/serving_runs.csv.gz")
def test_accuracy_on_every_twentieth_measured_point(tmp_path):
    import gzip

    lines = gzip.decompress(RUNS.read_bytes()).decode().splitlines()
    sample = tmp_path / "some.csv"
    sample.write_text("\n".join([lines[0], *lines[1::60]]) + "\n", encoding="utf-8")
    backtest = backtest_serving(sample)
    assert not backtest.rejected
    assert backtest.errors()["tpot"]["median_ape_frac"] < 0.22


def test_a_scale_of_unlabelled_runs_is_the_one_of_least_relative_error():
    kind = PointKind(split=True, guessed=True, load=1, busy=False, **GROUPS)
    step = np.full(400, 0.02)
    measured = np.where(np.arange(400) < 200, 0.02, 0.01)
    loops = [LoopLatency(ttft_s=0.02, ttft_median_s=0.02, tpot_s=0.02)] * 400
    fitted = fit_serving_correction([kind] * 400, loops, ttft_s=step, tpot_s=measured, weight=np.ones(400))
    assert fitted.tpot_s(kind, 0.02) == pytest.approx(0.01, rel=0.02)
