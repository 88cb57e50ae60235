from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import ConfigDict

from hardware.errors import SpecError
from hardware.schema import read_yaml, read_yaml_text, validate
from hardware.units import Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    memory_bytes: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: str
    inner: tuple[Inner, ...] = ()


def test_reads_a_mapping_into_frozen_values() -> None:
    data = read_yaml_text("name: x\ninner: [{memory_bytes: 80 GB}]", "f.yaml")
    assert validate(Outer, data, "f.yaml") == Outer(name="x", inner=(Inner(memory_bytes=80e9),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nname: y", "f.yaml: line 2: key 'name' is given twice"),
        ("a: {b: 1,\n b: 2}", "line 2: key 'b' is given twice"),
        ("no: 1", "key False is not text"),
        ("name: [x", "line 2: not readable as YAML"),
        ("- a", "expected a mapping of keys and values, found list"),
        ("", "expected a mapping of keys and values, found NoneType"),
        ("x: !!python/object:os.system {}", "not readable as YAML"),
    ],
)
def test_refuses_what_is_no_mapping_with_unique_text_keys(text: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        read_yaml_text(text + "\n", "f.yaml")
    assert message in str(error.value)


def test_names_every_problem_with_its_place_at_once() -> None:
    data = {"naem": 1, "inner": [{"memory_bytes": "80 Gb"}, {"memory_bytes": -1, "memry": 2}, 7]}
    with pytest.raises(SpecError) as error:
        validate(Outer, data, "f.yaml", prefix="top")
    assert error.value.problems == (
        "top.name: is missing",
        "top.inner.0.memory_bytes: '80 Gb' is not a quantity in B (for example '80 GB')",
        "top.inner.1.memory_bytes: -1 is too small; input should be greater than 0",
        "top.inner.1.memry: unexpected key (accepted: memory_bytes)",
        "top.inner.2: 7 is not accepted; input should be a dictionary or an instance of Inner",
        "top.naem: unexpected key (did you mean name?)",
    )


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: \xe4".encode("latin-1"))
    with pytest.raises(SpecError, match="not UTF-8"):
        read_yaml(tmp_path / "latin.yaml")
