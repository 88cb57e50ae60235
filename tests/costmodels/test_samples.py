from pathlib import Path

import pytest

from costmodels.samples import Sample, lines, read_samples
from hardware.errors import SpecError

ONE = Sample(
    kind="matmul",
    shape=(("m", 64.0), ("n", 128.0), ("k", 256.0)),
    seconds=1e-4,
    best_s=9e-5,
    device="box",
    backend="cpu",
    date="2026-01-02",
)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(lines([ONE]), encoding="utf-8")
    found = read_samples(path).samples[0]
    assert (found.kind, found.shape, found.seconds, found.device) == ("matmul", ONE.shape, 1e-4, "box")
    assert found.at["k"] == 256


def test_a_cut_off_last_line_is_left_out_and_noted(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(lines([ONE, ONE])[:-20], encoding="utf-8")
    found = read_samples(path)
    assert len(found.samples) == 1
    assert "cut off" in found.notes[0]
    assert found.whole_bytes == len(lines([ONE]))


def test_a_shape_without_a_time_says_why(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    failed = Sample(kind="launch", shape=(), error="out of memory", num_repeats=0)
    path.write_text(lines([ONE, failed]), encoding="utf-8")
    assert [s.error for s in read_samples(path).failed] == ["out of memory"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("0.0001,", "nan,", "line 2: seconds nan is not a positive number"),
        ("0.0001,", "-1,", "not a positive number"),
        ("matmul", "matmull", "kind 'matmull' is none of"),
        ("k=256", "", "misses k"),
        ("m=64", "m=x", "could not convert"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "s.csv"
    path.write_text(lines([ONE]).replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SpecError, match=said):
        read_samples(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(SpecError, match="is no samples file"):
        read_samples(path)
    with pytest.raises(SpecError, match="cannot be read"):
        read_samples(tmp_path / "absent.csv")
