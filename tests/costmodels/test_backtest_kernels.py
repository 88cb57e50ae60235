import gzip
import json
from pathlib import Path

import pytest

from costmodels.backtest.kernels import backtest_kernels
from costmodels.kernels.samples import read_kernel_samples
from hardware.errors import SpecError

GEMM = "gemm_dtype,kernel_source,m,n,k,latency_ms\n"
SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "kernels"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def test_device_and_milliseconds_are_read_from_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "h100_sxm_gemm_bf16.csv.gz", GEMM + "bfloat16,cublas,4096,4096,4096,0.2\n")
    result = backtest_kernels(path)
    assert (result.device, result.measured, result.num_rows) == ("h100", True, 1)
    assert result.measured_s[0] == pytest.approx(2e-4)
    assert result.predicted_s[0] == pytest.approx(2e-4, rel=0.2)
    report = json.loads(json.dumps(result.to_json()))
    assert report["kind"] == "kernels"
    assert report["num_predicted"] == 1
    assert report["by"]["gemm_dtype"]["bfloat16"]["num_rows"] == 1


def test_rows_that_cannot_be_predicted_are_named(tmp_path: Path) -> None:
    rows = (
        "bfloat16,x,16,4096,4096,0.02\nfp8,x,16,4096,4096,0.02\nfp3,x,16,64,64,0.02\nbfloat16,x,16,64,0,0.1\n"
    )
    result = backtest_kernels(
        write(tmp_path, "a.csv", GEMM + rows + "bfloat16,x,16,64,64,-1\n"), device="a100-80gb"
    )
    assert [line for line, _ in result.rejected] == [3, 4, 5, 6]
    assert "no rated fp8 peak" in result.rejected[0][1]
    assert "fp3" in result.rejected[1][1]
    assert "k is not a number of at least 1" in result.rejected[2][1]
    assert "'-1' is not a positive number" in result.rejected[3][1]
    assert result.num_rows == 5


def test_a_device_that_was_never_measured_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, "runs.csv", GEMM + "bfloat16,x,4096,4096,4096,0.3\n")
    result = backtest_kernels(path, device="mi300x")
    assert result.to_json()["measured_device"] is False
    assert result.to_json()["surface"] == "generic"


def test_a_device_column_is_followed(tmp_path: Path) -> None:
    text = "system," + GEMM + "h100_sxm,bfloat16,x,64,4096,4096,0.02\na100_sxm,bfloat16,x,64,4096,4096,0.03\n"
    result = backtest_kernels(write(tmp_path, "mixed.csv", text), by="system")
    assert set(result.to_json()["by"]["system"]) == {"h100_sxm", "a100_sxm"}
    assert result.predicted_s[0] < result.predicted_s[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "no kernel table"),
        ("gemm_dtype,m,n,latency_ms\nbfloat16,1,2,3\n", "column 'k' is missing"),
        ("", "holds no rows"),
        (GEMM + "bfloat16,x,1\n", "line 2 has 3 cells"),
    ],
)
def test_a_file_that_is_no_kernel_table(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read_kernel_samples(write(tmp_path, "h100.csv", text))


def test_a_file_that_names_no_device(tmp_path: Path) -> None:
    path = write(tmp_path, "some_runs.csv", GEMM + "bfloat16,x,1,64,64,0.01\n")
    with pytest.raises(SpecError, match="not named after a device"):
        backtest_kernels(path)
    with pytest.raises(SpecError, match="cannot group by 'colour'"):
        backtest_kernels(path, device="h100", by="colour")


def test_a_power_column_compares_the_draw_of_products(tmp_path: Path) -> None:
    header = GEMM.replace("\n", ",power_w\n")
    rows = "bfloat16,x,8192,8192,8192,1.6,690\nbfloat16,x,1,128,128,0.003,-\nfp8,x,8192,8192,8192,0.9,690\n"
    result = backtest_kernels(write(tmp_path, "h200_gemm.csv", header + rows))
    report = result.to_json()["draw"]
    assert report["source"] == "h200-vllm"
    assert report["by"]["all"]["num_rows"] == 1
    assert report["by"]["bf16"]["mape_frac"] < 0.1
    assert [name for name, _ in result.table_rows()][-2:] == ["draw, bf16", "draw, all"]


@pytest.mark.parametrize("device", ["h100", "a100-80gb"])
def test_no_draw_is_compared_where_no_source_measured_it(tmp_path: Path, device: str) -> None:
    text = GEMM.replace("\n", ",power_w\n") + "bfloat16,x,4096,4096,4096,0.3,600\n"
    assert backtest_kernels(write(tmp_path, "runs.csv", text), device=device).to_json()["draw"] is None


@pytest.mark.skipif(not SHARED.is_dir(), reason="the measured kernel tables are not beside this checkout")
@pytest.mark.parametrize(
    ("table", "family"),
    [
        ("h100_sxm_generation_attention", "decode"),
        ("b200_sxm_context_mla", "context_mla"),
        ("l40s_moe", "experts"),
    ],
)
def test_real_tables_are_recognised_and_mostly_inside_their_interval(table: str, family: str) -> None:
    result = backtest_kernels(SHARED / f"{table}.csv.gz")
    assert result.family == family
    assert not result.rejected
    assert result.overall is not None
    assert result.overall.interval_coverage_frac > 0.85
