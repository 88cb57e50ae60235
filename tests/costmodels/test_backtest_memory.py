"""Backtest of allocator figures: file format, errors, and accuracy on the public table where it lies near."""

import csv
from pathlib import Path

import numpy as np
import pytest

from costmodels.backtest.memory import backtest_memory
from costmodels.memory.coefficients import golden_coefficients
from hardware.errors import SpecError

TABLE = Path(__file__).parents[2].parent / "shared" / "data" / "training_memory.csv"

ROW = {
    "path": "tests/test_cases/gpt/te_tp1_pp1/golden_values_dev_dgx_h100.json",
    "platform": "dgx_h100",
    "layers": 2,
    "hidden": 256,
    "heads": 4,
    "seq": 128,
    "mbs": 2,
    "gbs": 16,
    "tp": 1,
    "pp": 1,
    "impl": "transformer_engine",
    "mem_alloc_bytes": 4e8,
    "mem_max_alloc_bytes": 5e8,
}


@pytest.fixture
def table(tmp_path):
    def write(*rows):
        path = tmp_path / "runs.csv"
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(ROW))
            writer.writeheader()
            writer.writerows([ROW | row for row in rows])
        return path

    return write


def test_one_run_by_hand(table):
    backtest = backtest_memory(table({}))
    layer = 12 * 256 * 256 + 13 * 256
    num_params = 2 * layer + (50304 + 128) * 256 + 2 * 256
    workspaces = golden_coefficients().base_bytes + (32 + 32) * 2**20
    assert backtest.allocated_bytes[0] == pytest.approx(18 * num_params + workspaces)
    tokens = 2 * 128
    activations = 2 * tokens * (34 * 256 + 2 * 8 + 4 * 4)
    logits = 6 * tokens * 50304
    last = 2 * tokens * 256
    expected = 18 * num_params + workspaces + activations + logits + last
    assert backtest.peak_bytes[0] == pytest.approx(expected)


def test_json_is_complete(table):
    found = backtest_memory(table({}, {"path": "tests/llava/x.json"}), by="platform").to_json()
    assert (found["kind"], found["num_rows"], found["num_predicted"]) == ("memory", 2, 1)
    assert found["rejected"][0]["row_id"] == "tests/llava/x.json"
    assert set(found["predictions"][0]) == {"row_id", "allocated_bytes", "peak_bytes"}
    assert found["predictions"][0]["row_id"] == ROW["path"]
    assert list(found["by"]) == ["dgx_h100"]
    assert list(found["sources"]) == ["gpt"]
    expected = abs(found["predictions"][0]["peak_bytes"] / 5e8 - 1)
    assert found["overall"]["median_ape_frac"] == pytest.approx(expected)
    assert found["overall"]["p90_ape_frac"] == pytest.approx(expected)


def test_rows_without_figures_are_predicted_all_the_same(table):
    backtest = backtest_memory(table({"mem_alloc_bytes": "", "mem_max_alloc_bytes": ""}))
    assert len(backtest.runs) == 1
    assert backtest.to_json()["overall"]["p90_ape_frac"] is None
    assert [label for label, _ in backtest.table_rows()] == ["gpt", "all, peak", "all, steady"]


def test_an_unknown_column_to_split_by_is_named(table):
    with pytest.raises(SpecError, match="no column is called 'colour'"):
        backtest_memory(table({}), by="colour")


@pytest.mark.skipif(not TABLE.exists(), reason="the table of measured memory is not beside the checkout")
def test_accuracy_on_megatrons_own_tests():
    backtest = backtest_memory(TABLE)
    assert len(backtest.runs) >= 0.95 * backtest.num_rows
    assert backtest.overall.median_ape_frac <= 0.02
    assert backtest.p90_ape_frac <= 0.06
    cases = np.array([run.path.split("/")[-2] for run in backtest.runs])
    measured = np.array([run.peak_bytes or np.nan for run in backtest.runs])
    ape = np.abs(backtest.peak_bytes / measured - 1)
    by_case = [np.nanmedian(ape[cases == c]) for c in np.unique(cases) if np.isfinite(ape[cases == c]).any()]
    assert np.median(by_case) <= 0.02
    assert np.quantile(by_case, 0.9) <= 0.1
