from pathlib import Path

import pytest

from hardware import catalog
from hardware.catalog import (
    cluster_names,
    device_names,
    device_sources,
    find_cluster,
    find_device,
    find_node,
    node_names,
)
from hardware.errors import SpecError, UnknownNameError

CARD = """\
vendor: acme
memory_bytes: 48 GB
memory_bytes_per_s: 900 GB/s
bf16_flops_per_s: 100 TFLOP/s
"""
EXAMPLES = Path(__file__).parents[2] / "examples" / "clusters"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("H100-80GB", "h100"),
        ("A100", "a100-80gb"),
        ("a100_sxm", "a100-80gb"),
        ("MI250X-GCD", "mi250x"),
        ("t4", "t4"),
    ],
)
def test_devices_are_found_by_alias_and_in_any_case(given: str, name: str) -> None:
    assert find_device(given).name == name
    assert find_device(given) is find_device(name)


def test_names_that_others_rely_on() -> None:
    clusters = set(cluster_names())
    assert {
        "dgx-1v",
        "dgx-a100",
        "dgx-h100",
        "dgx-h200",
        "hgx-b200",
        "gb200-nvl72",
        "mi300x",
        "frontier",
    } <= clusters
    assert {"atlas-910b", "cloudmatrix384", "tpu-v5p", "aws-p5", "edge-box", "holmes-hybrid"} <= clusters
    assert {"l4", "a10g", "l40s", "a100-80gb", "h100", "h200", "b200", "mi300x", "ascend-910b"} <= set(
        device_names()
    )
    assert set(node_names()) <= clusters


@pytest.mark.parametrize(
    ("find", "name", "near"),
    [
        (find_device, "h10", "h100"),
        (find_node, "dgx-h10", "dgx-h100"),
        (find_cluster, "fronteer", "frontier"),
    ],
)
def test_an_unknown_name_suggests_near_ones(find: object, name: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean.*{near}"):
        find(name)


def test_finding_one_name_reads_its_file_and_its_device_only(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = catalog.read_yaml
    monkeypatch.setattr(catalog, "read_yaml", lambda path: (read.append(path.name), real(path))[1])
    catalog._read_node.cache_clear()
    catalog._read_device.cache_clear()
    cluster = find_cluster("dgx-h100", 512)
    assert len(cluster.levels) == 2
    assert sorted(read) == ["dgx-h100.yaml", "h100.yaml"]


def test_every_number_of_a_device_says_where_it_comes_from() -> None:
    sources = device_sources("H100-80GB")
    assert sources["bf16_flops_per_s"].kind == "datasheet"
    assert sources["idle_w"].kind == "measured"


def _catalogue(root: Path, name: str, text: str, kind: str = "devices") -> Path:
    (root / kind).mkdir(parents=True, exist_ok=True)
    (root / kind / f"{name}.yaml").write_text(text)
    return root


def test_a_directory_adds_devices_and_needs_permission_to_replace(tmp_path: Path) -> None:
    root = _catalogue(tmp_path, "card", f"name: card\naliases: [my-card]\n{CARD}")
    assert find_device("my-card", catalogs=[root]).vendor == "acme"
    assert "card" in device_names(catalogs=[root])
    with pytest.raises(UnknownNameError):
        find_device("card")
    _catalogue(root, "l4", f"name: l4\n{CARD}")
    with pytest.raises(SpecError, match="'l4' is built in; rename it, or write 'overrides: true'"):
        find_device("l4", catalogs=[root])
    _catalogue(root, "l4", f"name: l4\noverrides: true\n{CARD}")
    assert find_device("l4", catalogs=[root]).vendor == "acme"
    assert find_device("l4").vendor == "nvidia"


def test_a_catalogue_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is not a directory"):
        find_device("l4", catalogs=[tmp_path / "none"])


def test_a_directory_adds_nodes_and_clusters(tmp_path: Path) -> None:
    node = "name: pair\ndevice: l4\nparts: [{id: gpu, count: 2, kind: accelerator}]\n" + (
        "links: [{mesh: 'gpu*', technology: pcie4, bytes_per_s: 16 GB/s, latency_s: 1 us}]\n"
    )
    root = _catalogue(tmp_path, "pair", node, "nodes")
    _catalogue(root, "mine", "name: mine\ngroups: [{node: pair, count: 1}]\n", "clusters")
    assert find_cluster("mine", catalogs=[root]).num_devices == 2
    assert "pair" in cluster_names(catalogs=[root])


@pytest.mark.parametrize(("name", "num_devices"), [("my-lab", 16), ("two-halls", 192)])
def test_example_clusters_load(name: str, num_devices: int) -> None:
    cluster = find_cluster(EXAMPLES / f"{name}.yaml")
    assert cluster.name == name
    assert cluster.levels[-1].size == cluster.num_devices == num_devices


BOX = "nodes: {b: {device: l4, parts: [{id: gpu, kind: accelerator, count: 2}], links: [%s]}}"
LINK = "technology: nvlink4, latency_s: 1 us"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "groups: [{node: dgx-h1000, count: 2}]",
            ["groups.0.node: no node is called 'dgx-h1000'; did you mean dgx-h100"],
        ),
        (
            "groups: [{node: dgx-h100, count: 0}]\nfabrix: []",
            ["groups.0.count: 0 is too small", "fabrix: unexpected key (did you mean fabrics?)"],
        ),
        ("groups: 3", ["groups: 3 is not accepted; input should be a list"]),
        (
            "groups: [{node: dgx-h100, count: 2, fabrics: [ibb]}]",
            ["group 0: no fabric is called 'ibb'; known: ib"],
        ),
        (
            "groups: [{node: b, count: 1}]\n" + BOX % f"{{mesh: 'gpx*', bytes_per_s: 450 GB/s, {LINK}}}",
            ["nodes.b.links.0: 'gpx*' matches no part (parts: gpu0, gpu1)"],
        ),
        (
            "groups: [{node: b, count: 1}]\n"
            + BOX % f"{{pairs: [[gpu0, gpu7]], bytes_per_s: 450 GB/s, {LINK}}}",
            ["nodes.b.links.0: 'gpu7' matches no part"],
        ),
        (
            "groups: [{node: b, count: 1}]\n" + BOX % f"{{mesh: 'gpu*', bytes_per_s: 450 Gb/s, {LINK}}}",
            ["nodes.b.links.0.bytes_per_s: '450 Gb/s' is not a quantity in B/s (for example '450 GB/s')"],
        ),
        (
            "groups: [{node: b, count: 1}]\n" + BOX % f"{{bytes_per_s: 450 GB/s, {LINK}}}",
            ["nodes.b.links.0: a link entry needs exactly one of each, spread, mesh and pairs"],
        ),
        ("groups: [{node: b, count: 1}]\n" + BOX % "", ["nodes.b: disconnected: no path from gpu0 to gpu1"]),
        (
            "groups: [{node: dgx-h100, count: 3, devices_per_node: 9}]",
            ["groups.0.devices_per_node: node dgx-h100 has 8 devices, 9 cannot be used"],
        ),
        (
            "groups: [{node: dgx-h100, count: 3}]\n"
            "fabrics: [{name: a, kind: clos, technology: ib, latency_s: 5 m, taper: 3}]",
            [
                "fabrics.0.latency_s: '5 m' is not a quantity in s (for example '5 us')",
                "fabrics.0.taper: 3 is not",
            ],
        ),
        (
            "groups: [{node: nope, count: 3}]\ndevices: {q: {vendor: z, memory_bytes: 80 Gb, tpd_w: 3 W}}",
            [
                "devices.q.memory_bytes_per_s: is missing",
                "devices.q.memory_bytes: '80 Gb' is not a quantity in B",
                "devices.q.tpd_w: unexpected key (did you mean tdp_w?)",
                "groups.0.node: no node is called 'nope'",
            ],
        ),
        ("groups: [{node: x, count: 1}]\nschema_version: 2", ["schema_version: 2 is not accepted"]),
    ],
)
def test_a_wrong_cluster_file_names_all_its_problems(tmp_path: Path, text: str, problems: list[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"name: c\n{text}\n")
    with pytest.raises(SpecError) as error:
        find_cluster(path)
    assert error.value.where == str(path)
    assert len(error.value.problems) == len(problems)
    for expected in problems:
        assert any(problem.startswith(expected) for problem in error.value.problems), error.value.problems


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: cannot be read"):
        find_cluster("none.yaml")


def test_rates_that_look_like_a_mistake_are_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    node = "nodes: {b: {device: h100, parts: [{id: gpu, kind: accelerator, count: 2}], links: [%s]}}"
    link = "{mesh: 'gpu*', technology: nvlink4, bytes_per_s: %s, latency_s: 1 us}"
    path.write_text("name: c\ngroups: [{node: b, count: 1}]\n" + node % link % "900 GB/s")
    with pytest.warns(UserWarning, match="h100 is rated 4.5e\\+11 one way"):
        find_cluster(path)
    path.write_text("name: c\ngroups: [{node: b, count: 1}]\n" + node % link % "450 kB/s")
    with pytest.warns(UserWarning, match="450000 B/s; are these bytes, and one way"):
        find_cluster(path)
