import gzip
from pathlib import Path

import pytest

from costmodels.run_table import read_run_table
from hardware.errors import SpecError


def test_reads_plain_and_compressed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "runs.csv", tmp_path / "runs.csv.gz"
    plain.write_text("a,b\n1,x\n")
    with gzip.open(packed, "wt") as stream:
        stream.write("a,b\n1,x\n")
    for path in (plain, packed):
        (row,) = read_run_table(path, ("a",)).rows
        assert row.whole("a") == 1
        assert row.text("b") == "x"


def test_defaults_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("a,b\n,1\n,2\n3,4\n")
    table = read_run_table(path, ("a",))
    assert [row.whole("a", 7) for row in table.rows] == [7, 7, 3]
    assert table.filled == {"a=7": 2}


def test_missing_columns_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("a\n1\n")
    with pytest.raises(SpecError) as caught:
        read_run_table(path, ("a", "b", "c"))
    assert str(path) in str(caught.value)
    assert "'b'" in str(caught.value)
    assert "'c'" in str(caught.value)


@pytest.mark.parametrize("cell", ["fast", "-1", "1.5"])
def test_bad_cell_names_line_column_and_value(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(f"a\n1\n{cell}\n")
    rows = read_run_table(path, ("a",)).rows
    with pytest.raises(SpecError, match="line 3, a"):
        rows[1].whole("a")


def test_blank_without_default_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("a,b\n,1\n")
    (row,) = read_run_table(path, ("a",)).rows
    assert row.optional("a") is None
    with pytest.raises(SpecError, match="blank"):
        row.number("a")


def test_unreadable_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        read_run_table(tmp_path / "absent.csv", ("a",))


def test_row_with_too_many_cells(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("a\n1,2\n")
    with pytest.raises(SpecError, match="line 2"):
        read_run_table(path, ("a",))
