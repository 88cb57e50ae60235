"""Every shipped file of the hardware catalogue parses, is named for what it holds, and is sourced."""

import csv
import itertools
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from hardware.catalog import (
    BUILT_IN,
    _aliases_in,
    cluster_names,
    device_names,
    device_sources,
    find_cluster,
    find_device,
    find_node,
    node_names,
)
from hardware.device import Source
from hardware.schema import read_yaml, validate

SHARED = Path(__file__).parents[3] / "shared" / "data"
NUMBERS = (
    "bytes_per_s", "latency_s", "count", "taper", "oversubscription", "dims", "group_nodes", "max_nodes",
    "leaf_nodes", "default_num_nodes", "devices_per_host", "wrap_multiple",
)  # fmt: skip


def _quantities(data: object, path: str = "") -> list[str]:
    """Return the dotted paths of everything in a node or cluster file that is a number."""
    if isinstance(data, dict):
        children = [
            (f"{path}.{key}" if path else key, value) for key, value in data.items() if key != "sources"
        ]
        return [found for key, value in children for found in _leaf(key, value)]
    if isinstance(data, list):
        return [found for index, value in enumerate(data) for found in _leaf(f"{path}.{index}", value)]
    return []


def _leaf(path: str, value: object) -> list[str]:
    return [path] if path.endswith(NUMBERS) and not isinstance(value, dict) else _quantities(value, path)


@pytest.mark.parametrize("name", device_names())
def test_a_device_is_named_for_its_file_and_every_number_is_sourced(name: str) -> None:
    data = read_yaml(BUILT_IN / "devices" / f"{name}.yaml")
    device = find_device(name)
    assert device.name == name == name.lower()
    text = {"name", "vendor", "aliases", "prices", "sources"}
    assert set(device_sources(name)) == set(data) - text
    assert all(isinstance(data[key], str) for key in set(data) - text - {"num_sms"}), "quantities carry units"


@pytest.mark.parametrize("kind", ["nodes", "clusters"])
def test_every_number_of_a_node_or_cluster_is_sourced(kind: str) -> None:
    for path in sorted((BUILT_IN / kind).glob("*.yaml")):
        data = read_yaml(path)
        assert data["name"] == path.stem
        sources = validate(dict[str, Source], data["sources"], str(path))
        bare = [key for key in _quantities(data) if not any(fnmatchcase(key, pattern) for pattern in sources)]
        assert not bare, path.name
        paths = _quantities(data)
        idle = [pattern for pattern in sources if not any(fnmatchcase(key, pattern) for key in paths)]
        assert not idle, path.name


def test_no_two_files_of_a_kind_share_a_name_or_alias() -> None:
    for kind in ("devices", "nodes", "clusters"):
        files = sorted((BUILT_IN / kind).glob("*.yaml"))
        names = [path.stem for path in files] + [
            a for path in files for a in _aliases_in(path.read_text()) if a
        ]
        assert len(names) == len(set(names)), kind


def test_aliases_read_without_parsing_are_the_real_ones() -> None:
    for name in device_names():
        text = (BUILT_IN / "devices" / f"{name}.yaml").read_text()
        assert tuple(_aliases_in(text)) == find_device(name).aliases


@pytest.mark.parametrize("name", cluster_names())
def test_every_cluster_has_nested_levels_that_cover_it(name: str) -> None:
    cluster = find_cluster(name)
    sizes = [level.size for level in cluster.levels]
    assert sizes[-1] == cluster.num_devices
    assert all(outer % inner == 0 and outer > inner for inner, outer in itertools.pairwise(sizes))


@pytest.mark.parametrize("name", node_names())
def test_no_level_promises_more_than_the_device_is_rated_for(name: str) -> None:
    node = find_node(name)
    rated = node.device.scale_up_bytes_per_s
    for level in node.levels:
        if not level.technology.startswith(("pcie", "upi", "cpu", "sio")) and rated is not None:
            assert level.bytes_per_s <= rated * 1.001
        assert 1e7 < level.bytes_per_s < 2e12


def _labels() -> list[str]:
    path = SHARED / "training_runs.csv"
    if not path.is_file():
        return []
    with path.open() as file:
        return sorted({row["gpu"] for row in csv.DictReader(file)})


def test_every_label_of_the_measured_runs_is_a_device() -> None:
    labels = _labels()
    if not labels:
        pytest.skip("../shared/data/training_runs.csv is absent")
    found = {label: find_device(label).name for label in labels}
    assert found["MI250X-GCD"] == "mi250x"
    assert found["H100-96GB-HBM2e"] == "h100-96gb-hbm2e"


def test_every_sourced_device_of_the_table_is_in_the_catalogue() -> None:
    path = SHARED / "hardware" / "devices.csv"
    if not path.is_file():
        pytest.skip("../shared/data/hardware/devices.csv is absent")
    with path.open() as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    devices = [find_device(name) for name in device_names()]
    devices = [find_device(name) for name in device_names()]
    peaks = {round((device.bf16_flops_per_s or device.fp16_flops_per_s or 0) / 1e11) for device in devices}
    for row in rows:
        assert round(float(row["bf16_TFLOPS"] or row["fp16_TFLOPS"]) * 10) in peaks, row["device"]
