import gzip
from pathlib import Path

import numpy as np
import pytest

from costmodels.job import Slo, Traffic
from costmodels.traces import read_lengths, read_trace
from hardware.errors import InputError, SpecError

GOOD = "arrival_s,prompt_tokens,output_tokens\n0,10,2\n1,20,4\n1,10,2\n4,30,6\n"


def write(tmp_path: Path, text: str, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_reads_columns_plain_and_gzip(tmp_path: Path, name: str) -> None:
    trace = read_trace(write(tmp_path, GOOD, name))
    assert trace.arrival_s.tolist() == [0, 1, 1, 4]
    assert trace.prompt_tokens.tolist() == [10, 20, 10, 30]
    assert trace.rate_per_s == pytest.approx(3 / 4)


def test_scaling_keeps_order_and_sets_the_rate(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, GOOD)).scaled(3.0)
    assert trace.rate_per_s == pytest.approx(3.0)
    assert trace.arrival_s.tolist() == pytest.approx([0, 0.25, 0.25, 1])


def test_traffic_counts_each_size_once(tmp_path: Path) -> None:
    traffic = read_trace(write(tmp_path, GOOD)).traffic()
    assert traffic.prompt_tokens == (10, 20, 30)
    assert traffic.share_frac == (0.5, 0.25, 0.25)
    assert traffic.mean_output_tokens == pytest.approx(3.5)


def test_optional_columns_are_kept_and_others_ignored(tmp_path: Path) -> None:
    text = "session,arrival_s,prompt_tokens,output_tokens,prefix_tokens,x\n7,0,10,2,0,a\n7,1,20,4,12,b\n"
    trace = read_trace(write(tmp_path, text))
    assert trace.session is not None
    assert trace.prefix_tokens is not None
    assert trace.prefix_tokens.tolist() == [0, 12]
    assert trace.traffic().prefix_hit_frac == pytest.approx(12 / 30)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "column arrival_s is missing"),
        (
            "arrival_s,prompt_tokens\n0,1\n",
            "column output_tokens is missing; found: arrival_s, prompt_tokens",
        ),
        ("arrival_s,prompt_tokens,output_tokens\n", "no requests"),
        (GOOD + "-1,1,1\n", "line 6: arrival_s: -1 is not 0 or later"),
        (GOOD + "3,1,1\n", "line 6: arrival_s: 3 is not at or after the line above"),
        (GOOD + "5,0,1\n", "line 6: prompt_tokens: 0 is not a whole number"),
        (GOOD + "5,1,1.5\n", "line 6: output_tokens: 1.5 is not a whole number"),
        (GOOD + "5,x,1\n", "line 6: prompt_tokens: 'x' is not a finite number"),
        (GOOD + "nan,1,1\n", "line 6: arrival_s: 'nan' is not a finite number"),
        (GOOD + "5,1\n", "line 6: output_tokens: '' is not a finite number"),
    ],
)
def test_bad_traces_name_line_and_value(tmp_path: Path, text: str, names: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        read_trace(path)
    assert names in str(caught.value)
    assert str(path) in str(caught.value)


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    text = "arrival_s,prompt_tokens,output_tokens\n" + "0,0,1\n" * 15
    with pytest.raises(SpecError, match="5 more lines"):
        read_trace(write(tmp_path, text))


def test_missing_and_broken_files_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_trace(tmp_path / "none.csv")
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(broken)


def test_lengths_need_no_arrivals(tmp_path: Path) -> None:
    prompt, output = read_lengths(write(tmp_path, "prompt_tokens,output_tokens\n5,2\n7,3\n"))
    assert np.array_equal(prompt, [5, 7])
    assert np.array_equal(output, [2, 3])


def test_slo_lists_given_targets_and_refuses_nonsense() -> None:
    assert Slo(ttft_s=0.5).targets == {"ttft_s": 0.5}
    with pytest.raises(ValueError, match="percentile"):
        Slo(ttft_s=0.5, percentile=0)
    with pytest.raises(ValueError, match="tpot_s must be positive"):
        Slo(tpot_s=-1.0)


def test_traffic_shares_must_sum_to_one() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        Traffic(rate_per_s=1.0, prompt_tokens=(1,), output_tokens=(1,), share_frac=(0.5,))
