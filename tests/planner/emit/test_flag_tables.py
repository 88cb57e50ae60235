"""Our tables of options: forms that can be read, and spelling and choices as the real parsers list them."""

import ast
from importlib.resources import files
from pathlib import Path

import pytest

from planner.emit.verify.flag_table import flag_table, read_flags
from planner.emit.verify.schema_check import schemas
from planner.emit.verify.value_forms import text_problem

LISTED = Path(__file__).parents[4] / "shared" / "data" / "launch"
TABLES = ("megatron-lm", "mindspeed", "torchtitan", "vllm", "sglang", "tensorrt-llm", "dynamo")


@pytest.mark.parametrize("name", TABLES)
def test_every_form_can_be_read(name: str) -> None:
    table = flag_table(name)
    assert table.source
    for flag, form in table.forms.items():
        assert flag.startswith("--")
        assert form == "switch" or text_problem("-", form) is None or text_problem("-", form)


def test_tables_and_files_are_the_same() -> None:
    stems = {path.name.removesuffix(".yaml") for path in files("planner.emit").joinpath("data").iterdir()}
    assert stems == {*TABLES, "schemas"}
    assert "ds_config.json" in schemas()


def test_reading_a_line() -> None:
    table = flag_table("megatron-lm")
    values, problems = read_flags(["--bf16", "--num-layers=4", "--hidden-size", "8"], table)
    assert values == {"--bf16": "", "--num-layers": "4", "--hidden-size": "8"}
    assert problems == []
    wrong = ["--bf", "--num-layers", "--hidden-size", "x", "stray", "--bf16", "--bf16"]
    assert read_flags(wrong, table)[1] == [
        "--bf: not known (did you mean --bf16?)",
        "--num-layers: its value is missing",
        "--hidden-size: 'x' is not an integer",
        "'stray': a value without an option",
        "--bf16: given twice",
    ]


@pytest.mark.skipif(not LISTED.is_dir(), reason="../shared/data/launch is absent")
@pytest.mark.parametrize(
    ("name", "listing", "choices_column"),
    [
        ("megatron-lm", "megatron_flags_core0.19.2.tsv", 3),
        ("megatron-lm", "megatron_flags_main_d98e8a64.tsv", 3),
        ("vllm", "vllm_serve_flags_0.33.0.tsv", 2),
        ("sglang", "sglang_flags_0.5.23.tsv", 2),
    ],
)
def test_spelling_and_choices_as_the_real_parser_lists_them(
    name: str, listing: str, choices_column: int
) -> None:
    real: dict[str, tuple[str, ...] | None] = {}
    for line in (LISTED / listing).read_text().splitlines():
        cells = [cell.strip() for cell in line.split("\t")]
        choices = cells[choices_column] if len(cells) > choices_column else "None"
        try:
            listed = ast.literal_eval(choices)
        except (SyntaxError, ValueError):
            listed = None  # members of an enum
        for spelling in cells[0].split("|"):
            real[spelling] = None if listed is None else tuple(map(str, listed))
    for flag, form in flag_table(name).forms.items():
        assert flag in real
        known = real[flag]
        if known is not None and "|" in form:
            assert set(form.split("|")) <= set(known), flag
