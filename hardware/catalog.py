"""Find devices, nodes and clusters by name.

Where a name is looked for, in this order: the `devices:` and `nodes:` blocks of the cluster file itself, the
directories given (``--catalog DIR``), the built-in files, and plug-ins (entry points of the group
``meshwright.catalogs`` that load to a directory). All have the same layout: ``devices/``, ``nodes/`` and
``clusters/`` with one YAML file per name. A file of the same name as a built-in needs ``overrides: true``;
a plug-in never replaces a built-in. Finding one name reads that file only.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from hardware.cluster import Cluster, NodeGroup, NodeTemplate
from hardware.cluster_file import ClusterFile, build_cluster
from hardware.device import Device, Source
from hardware.errors import SpecError, UnknownNameError
from hardware.node_file import NodeFile, build_node
from hardware.schema import read_yaml, validate

__all__ = [
    "cluster_names",
    "device_names",
    "device_sources",
    "find_cluster",
    "find_device",
    "find_node",
    "load_cluster_file",
    "node_cluster",
    "node_names",
]

BUILT_IN = Path(__file__).parent / "data"
PLUGIN_GROUP = "meshwright.catalogs"
_ALIASES = re.compile(r"^aliases:[ \t]*\[(.*?)\]", re.MULTILINE | re.DOTALL)
Dirs = Sequence[Path | str]


def find_device(name: str, *, catalogs: Dirs = ()) -> Device:
    """Return the device called `name`, or one of whose aliases is `name`; case does not matter.

    Raises
    ------
    UnknownNameError
        with the nearest names.
    """
    return _read_device(_find_file("device", name, catalogs))


def find_node(name: str, *, catalogs: Dirs = ()) -> NodeTemplate:
    """Return the node template called `name`.

    Raises
    ------
    UnknownNameError
        with the nearest names.
    """
    return _read_node(_find_file("node", name, catalogs), _key(catalogs))


def find_cluster(name_or_path: str | Path, num_nodes: int | None = None, *, catalogs: Dirs = ()) -> Cluster:
    """Return a cluster by catalogue name, node template name, or path of a YAML file.

    Parameters
    ----------
    num_nodes : how many nodes instead of the number that the file gives; homogeneous clusters only.

    Raises
    ------
    UnknownNameError, SpecError, OutOfDomainError
    """
    cluster = _cluster(str(name_or_path), catalogs)
    return cluster if num_nodes is None else cluster.with_nodes(num_nodes)


def _cluster(name_or_path: str, catalogs: Dirs) -> Cluster:
    path = Path(name_or_path)
    if path.suffix.lower() in {".yaml", ".yml", ".json"} or "/" in name_or_path:
        return load_cluster_file(path, catalogs=catalogs)
    try:
        return _read_cluster(_find_file("cluster", name_or_path, catalogs), _key(catalogs))
    except UnknownNameError:
        pass
    try:
        return node_cluster(find_node(name_or_path, catalogs=catalogs))
    except UnknownNameError:
        names = (*cluster_names(catalogs=catalogs), *_all_aliases("node", catalogs))
        raise UnknownNameError("cluster", name_or_path, names) from None


def node_cluster(node: NodeTemplate) -> Cluster:
    """Return the cluster that a node template alone means: its default number of nodes, its usual fabrics."""
    names = tuple(fabric.name for fabric in node.fabrics)
    group = NodeGroup(node=node, count=node.default_num_nodes, fabrics=names)
    return Cluster(name=node.name, groups=(group,), fabrics=node.fabrics)


def load_cluster_file(path: Path, *, catalogs: Dirs = ()) -> Cluster:
    """Return the cluster that the YAML file `path` describes (format: `hardware.cluster_file`)."""
    return _build_cluster(read_yaml(path), path, catalogs)


def device_names(*, catalogs: Dirs = ()) -> tuple[str, ...]:
    """Return the names of all devices, sorted."""
    return _names("device", catalogs)


def node_names(*, catalogs: Dirs = ()) -> tuple[str, ...]:
    """Return the names of all node templates, sorted."""
    return _names("node", catalogs)


def cluster_names(*, catalogs: Dirs = ()) -> tuple[str, ...]:
    """Return the names of all clusters, node templates among them, sorted."""
    return tuple(sorted({*_names("cluster", catalogs), *_names("node", catalogs)}))


def device_sources(name: str, *, catalogs: Dirs = ()) -> dict[str, Source]:
    """Return for every number of the device where it comes from, by field name."""
    path = _find_file("device", name, catalogs)
    return validate(dict[str, Source], read_yaml(path).get("sources", {}), str(path), prefix="sources")


def _key(catalogs: Dirs) -> tuple[str, ...]:
    return tuple(str(directory) for directory in catalogs)


def normal_name(name: str) -> str:
    """Return `name` as the catalogue writes names: lower case, hyphens."""
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def _folders(kind: str, catalogs: Dirs) -> list[Path]:
    """Return where files of `kind` lie, the directories given first."""
    return [Path(directory) / f"{kind}s" for directory in catalogs] + [BUILT_IN / f"{kind}s"]


@cache
def _plugin_folders(kind: str) -> tuple[Path, ...]:
    return tuple(Path(str(point.load())) / f"{kind}s" for point in entry_points(group=PLUGIN_GROUP))


def _find_file(kind: str, name: str, catalogs: Dirs) -> Path:
    for directory in catalogs:
        if not Path(directory).is_dir():
            raise SpecError(
                str(directory), ["is not a directory; a catalogue holds devices/, nodes/ and clusters/"]
            )
    wanted = normal_name(name)
    folders = _folders(kind, catalogs)
    for folder in folders:
        path = folder / f"{wanted}.yaml"
        if "/" not in wanted and path.is_file():
            _check_override(path, kind)
            return path
    for folder in folders:
        found = _aliased(folder, wanted)
        if found is not None:
            return found
    for folder in _plugin_folders(kind):
        named = folder / f"{wanted}.yaml"
        plugin = named if named.is_file() else _aliased(folder, wanted)
        if plugin is not None:
            return plugin
    raise UnknownNameError(kind, name, (*_names(kind, catalogs), *_all_aliases(kind, catalogs)))


def _check_override(path: Path, kind: str) -> None:
    built_in = BUILT_IN / f"{kind}s" / path.name
    if path != built_in and built_in.is_file() and read_yaml(path).get("overrides") is not True:
        message = (
            f"name: {path.stem!r} is built in; rename it, or write 'overrides: true' to replace the built-in"
        )
        raise SpecError(str(path), [message])


def _aliased(folder: Path, wanted: str) -> Path | None:
    for path in sorted(folder.glob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if wanted in text and wanted in _aliases_in(text):
            return path
    return None


def _aliases_in(text: str) -> list[str]:
    """Return the aliases of a catalogue file without parsing the rest of it."""
    match = _ALIASES.search(text)
    return [alias.strip().strip("\"'") for alias in match.group(1).split(",")] if match else []


def _names(kind: str, catalogs: Dirs) -> tuple[str, ...]:
    folders = [*_folders(kind, catalogs), *_plugin_folders(kind)]
    return tuple(sorted({path.stem for folder in folders for path in folder.glob("*.yaml")}))


def _all_aliases(kind: str, catalogs: Dirs) -> tuple[str, ...]:
    texts = [
        path.read_text(encoding="utf-8", errors="replace")
        for folder in _folders(kind, catalogs)
        for path in folder.glob("*.yaml")
    ]
    return tuple(alias for text in texts for alias in _aliases_in(text) if alias)


@cache
def _read_device(path: Path) -> Device:
    return device_from(read_yaml(path), str(path))


def device_from(data: dict[str, Any], where: str, *, prefix: str = "") -> Device:
    """Return the device of a file's mapping, its `sources` and `overrides` left aside."""
    rated = {key: value for key, value in data.items() if key not in {"sources", "overrides"}}
    if "sources" in data:
        validate(
            dict[str, Source], data["sources"], where, prefix=f"{prefix}.sources" if prefix else "sources"
        )
    return validate(Device, rated, where, prefix=prefix)


@cache
def _read_node(path: Path, catalogs: tuple[str, ...]) -> NodeTemplate:
    spec = validate(NodeFile, read_yaml(path), str(path))
    device = _device_of(spec.device, str(path), "device", {}, catalogs)
    return build_node(spec, device, str(path))


def _device_of(name: str, where: str, key: str, inline: dict[str, Device], catalogs: Dirs) -> Device:
    if name in inline:
        return inline[name]
    try:
        return find_device(name, catalogs=catalogs)
    except UnknownNameError as error:
        known = UnknownNameError("device", name, (*error.known, *inline))
        raise SpecError(where, [f"{key}: {known}"]) from None


@cache
def _read_cluster(path: Path, catalogs: tuple[str, ...]) -> Cluster:
    return _build_cluster(read_yaml(path), path, catalogs)


def _build_cluster(data: dict[str, Any], path: Path, catalogs: Dirs) -> Cluster:
    """Return the cluster of a file's mapping; problems of all its blocks are raised together."""
    where = str(path)
    spec = validate(ClusterFile, data, where)
    problems: list[str] = []
    devices: dict[str, Device] = {}
    for name, given in spec.devices.items():
        with _gathering(problems, where):
            devices[name] = device_from({"name": name, **given}, where, prefix=f"devices.{name}")
    nodes: dict[str, NodeTemplate] = {}
    for name, given in spec.nodes.items():
        with _gathering(problems, where):
            node_spec = validate(NodeFile, {"name": name, **given}, where, prefix=f"nodes.{name}")
            if node_spec.device in spec.devices and node_spec.device not in devices:
                continue  # the device's own problem is already told
            device = _device_of(node_spec.device, where, f"nodes.{name}.device", devices, catalogs)
            nodes[name] = build_node(node_spec, device, where, prefix=f"nodes.{name}")
    for index, group in enumerate(spec.groups):
        if group.node not in nodes and group.node not in spec.nodes:
            with _gathering(problems, where):
                nodes[group.node] = _node_of(group.node, where, f"groups.{index}.node", nodes, catalogs)
    if problems:
        raise SpecError(where, problems)
    return build_cluster(spec, nodes, where)


@contextmanager
def _gathering(problems: list[str], where: str) -> Iterator[None]:
    """Add the problems of a SpecError raised inside to `problems` and go on; name another file's as such."""
    try:
        yield
    except SpecError as error:
        origin = "" if error.where == where else f"{error.where}: "
        problems.extend(f"{origin}{problem}" for problem in error.problems)


def _node_of(
    name: str, where: str, key: str, inline: dict[str, NodeTemplate], catalogs: Dirs
) -> NodeTemplate:
    try:
        return find_node(name, catalogs=catalogs)
    except UnknownNameError as error:
        known = UnknownNameError("node", name, (*error.known, *inline))
        raise SpecError(where, [f"{key}: {known}"]) from None
