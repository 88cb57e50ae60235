import json
from pathlib import Path

import pytest

from costmodels.backtest.training import backtest_training
from costmodels.stacks import stack_names
from hardware.errors import SpecError

HEADER = (
    "row_id,source,model,arch,hidden,ffn_hidden,layers,heads,seq,vocab,gpu,n_gpus,tp,pp,dp,mbs,gbs,recompute,"
    "zero,flash_attn,kernel,precision,iter_time_s,oom,group\n"
)
ROW = "{i},somewhere,m,gpt,2048,8192,24,16,2048,50257,A100,8,{tp},1,{dp},1,64,full,0,0,,fp16,{t},,g\n"


def _file(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text(HEADER + "".join(rows))
    return path


def test_every_row_is_predicted_or_rejected_with_a_reason(tmp_path: Path) -> None:
    bad = ROW.format(i="wrong", tp=3, dp=1, t=2.0)
    path = _file(tmp_path, *(ROW.format(i=f"r{tp}", tp=tp, dp=8 // tp, t=2.0 + tp) for tp in (1, 2, 4)), bad)
    result = backtest_training(path)
    data = json.loads(json.dumps(result.to_json()))
    assert data["kind"] == "train"
    assert data["num_rows"] == 4
    assert data["num_predicted"] == 3
    assert [r["row_id"] for r in data["rejected"]] == ["wrong"]
    assert "does not equal n_gpus" in data["rejected"][0]["why"]
    first = data["predictions"][0]
    assert first["row_id"] == "r1"
    assert 0 < first["iter_time_low_s"] < first["iter_time_s"] < first["iter_time_high_s"]
    assert first["peak_memory_bytes"] > 1e9
    assert 0 <= first["fits_probability"] <= 1
    assert first["stack"] in stack_names()
    assert data["overall"]["num_rows"] == 3
    assert data["overall"]["num_groups"] == 1
    assert set(data["sources"]) == {"somewhere"}


def test_errors_split_by_any_column(tmp_path: Path) -> None:
    path = _file(tmp_path, *(ROW.format(i=f"r{tp}", tp=tp, dp=8 // tp, t=2.0) for tp in (1, 2, 4)))
    result = backtest_training(path, by="tp")
    assert list(result.by) == ["1", "2", "4"]
    with pytest.raises(SpecError, match="no column is called 'tpp'"):
        backtest_training(path, by="tpp")


def test_rows_out_of_memory_are_judged(tmp_path: Path) -> None:
    """A 175B-like model on one device cannot fit, and the prediction says so."""
    big = "big,s,m,gpt,12288,49152,96,96,2048,50257,A100-80GB,8,8,1,1,1,8,none,0,1,,bf16,,1,g\n"
    small = "small,s,m,gpt,1024,4096,24,16,2048,50257,A100-80GB,8,8,1,1,1,8,none,0,1,,bf16,1.0,0,g\n"
    result = backtest_training(_file(tmp_path, big, small))
    assert result.feasibility.recall_frac == 1.0
    assert result.feasibility.precision_frac == 1.0


def test_missing_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("row_id,source\n1,s\n")
    with pytest.raises(SpecError, match="n_gpus"):
        backtest_training(path)


SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "training_runs.csv"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="no ../shared/data beside the checkout")
def test_shipped_coefficients_reproduce_the_measured_runs() -> None:
    """In-sample bound: what the benchmarks report held out must not silently rot."""
    result = backtest_training(SHARED)
    assert len(result.runs) + len(result.rejected) == result.num_rows
    assert result.overall.mape_frac < 0.06
    assert result.sources["vTrain-single"].regret_mean_frac < 0.005
