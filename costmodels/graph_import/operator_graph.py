"""Any network as a graph of operators: from a networkx DiGraph, or from a YAML or JSON file.

The file lists operators; each names its kind, its fields (those of `costmodels.graph`) and what it reads::

    name: small-cnn
    operators:
      - {name: stem, op: generic, flops: 2.4e8, reads: 1.5e5, writes: 8.0e5, saved: 1.5e5, num_params: 9408}
      - name: stage
        repeat: 4
        operators:
          - {name: conv, op: generic, flops: 4.6e8, reads: 8.0e5, writes: 8.0e5, saved: 8.0e5}
          - {name: add, op: elementwise, inputs: [conv, previous], reads: 1600000, writes: 800000, saved: 0}
      - {name: classes, op: matmul, in_features: 512, out_features: 1000, split: none, place: last}

Without `inputs` an operator reads the one before it; `previous`, inside a repeated group, is what came before
the group's turn. All counts are per token; a network without tokens counts per sample and is planned with a
sequence length of one.

Layers, the units that pipeline stages are made of, are the turns of repeated groups; elsewhere the order is
cut wherever a single tensor passes from what came before to what follows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

import networkx as nx

from costmodels.graph import (
    Attention,
    Block,
    Elementwise,
    Embedding,
    Experts,
    Generic,
    Matmul,
    ModelGraph,
    Norm,
    Operator,
    Split,
    StateSpace,
)
from hardware.errors import SpecError
from hardware.schema import validate

__all__ = ["OPERATOR_KINDS", "model_from_digraph", "model_from_operators", "output_elements"]

OPERATOR_KINDS: dict[str, type[Operator]] = {
    "attention": Attention,
    "elementwise": Elementwise,
    "embedding": Embedding,
    "experts": Experts,
    "generic": Generic,
    "matmul": Matmul,
    "norm": Norm,
    "state_space": StateSpace,
}
"""Word in the file -> operator."""

_ABOUT_NODE = ("name", "op", "inputs", "place")
_ABOUT_GROUP = ("name", "repeat", "operators")
_ABOUT_FILE = ("name", "operators", "hidden", "vocab", "max_seq_len", "tied_head", "source")
_PLACES = ("first", "layers", "last")


def output_elements(operator: Operator) -> float:
    """Return the elements per token that `operator` hands on."""
    match operator:
        case Matmul():
            return operator.out_features * operator.tokens_frac
        case Attention():
            return operator.num_heads * operator.value_dim
        case Norm():
            return operator.features * operator.copies
        case Embedding():
            return operator.features
        case Experts():
            return operator.hidden
        case StateSpace():
            return operator.inner
        case Elementwise() | Generic():
            return operator.writes


def model_from_digraph(
    graph: "nx.DiGraph[str]",
    *,
    name: str,
    hidden: int | None = None,
    vocab: int = 1,
    max_seq_len: int | None = None,
    tied_head: bool = False,
    source: str = "",
) -> ModelGraph:
    """Return the model of a directed graph whose nodes carry an `operator`.

    Parameters
    ----------
    graph : edges lead from an operator to those that read it. Nodes may also carry `place` ("first", "last"
        or "layers") and `layer`, a label that keeps operators in one layer.
    hidden : elements per token between layers; by default the most that any cut between layers carries.

    Raises
    ------
    SpecError
        if the graph is empty, has a cycle, or a node has no operator.
    """
    problems = [
        f"{node}: has no operator" for node, op in graph.nodes(data="operator") if not _is_operator(op)
    ]
    if not graph:
        problems.append("operators: the network has none")
    elif not nx.is_directed_acyclic_graph(graph):
        loop = [edge[0] for edge in nx.find_cycle(graph)]
        problems.append(f"operators: {' -> '.join([*loop, loop[0]])} is a cycle")
    if problems:
        raise SpecError(source or name, problems)
    position = {node: i for i, node in enumerate(graph)}
    order = list(nx.lexicographical_topological_sort(graph, key=lambda node: position[node]))
    places = {node: graph.nodes[node].get("place", "layers") for node in order}
    middle = [node for node in order if places[node] == "layers"]
    layers, widest = _cut(graph, middle)
    blocks, indices = _share(graph, layers)
    return ModelGraph(
        name=name,
        family="graph",
        hidden=max(1, round(widest)) if hidden is None else hidden,
        vocab=vocab,
        blocks=blocks,
        layers=indices,
        inputs=tuple(graph.nodes[n]["operator"] for n in order if places[n] == "first"),
        outputs=tuple(graph.nodes[n]["operator"] for n in order if places[n] == "last"),
        tied_head=tied_head,
        max_seq_len=max_seq_len,
        kind="graph",
        source=source,
    )


def _is_operator(value: object) -> bool:
    return isinstance(value, tuple(OPERATOR_KINDS.values()))


def _cut(graph: "nx.DiGraph[str]", order: Sequence[str]) -> tuple[list[list[str]], float]:
    """Return the layers in order, and the most elements that any cut between two layers carries."""
    rank = {node: i for i, node in enumerate(order)}
    last_use = {
        n: max((rank.get(m, len(order)) for m in graph.successors(n)), default=i) for n, i in rank.items()
    }
    layers: list[list[str]] = []
    current: list[str] = []
    widest = 0.0
    alive: list[str] = []
    for i, node in enumerate(order):
        current.append(node)
        alive = [n for n in (*alive, node) if last_use[n] > i]
        label = graph.nodes[node].get("layer")
        following = graph.nodes[order[i + 1]].get("layer") if i + 1 < len(order) else None
        ends = i + 1 == len(order) or label != following
        if ends or (label is None and len(alive) <= 1):
            layers.append(current)
            current = []
            widest = max(widest, sum(output_elements(graph.nodes[n]["operator"]) for n in alive))
    last = output_elements(graph.nodes[order[-1]]["operator"]) if order else 0.0
    return layers, widest or last


def _share(
    graph: "nx.DiGraph[str]", layers: Iterable[Sequence[str]]
) -> tuple[tuple[Block, ...], tuple[int, ...]]:
    """Return the distinct blocks, and for every layer the index of its block; names do not distinguish."""
    known: dict[tuple[Operator, ...], int] = {}
    blocks: list[Block] = []
    indices: list[int] = []
    for nodes in layers:
        operators = tuple(graph.nodes[node]["operator"] for node in nodes)
        shape = tuple(replace(op, name="") for op in operators)
        if shape not in known:
            known[shape] = len(blocks)
            reductions = sum(getattr(op, "split", None) is Split.ROW for op in operators)
            blocks.append(Block(name=operators[0].name, operators=operators, num_reductions=reductions))
        indices.append(known[shape])
    return tuple(blocks), tuple(indices)


@dataclass(slots=True)
class _Reader:
    """What has been read of a file so far, and every problem found."""

    where: str
    graph: "nx.DiGraph[str]"
    problems: list[str]
    before: str | None = None
    """The operator that stands before the one being read."""

    def read(
        self, items: object, *, key: str, prefix: str, layer: str | None, names: Mapping[str, str]
    ) -> dict[str, str]:
        """Add `items` to the graph and return the names that may be read, local name -> node."""
        local = dict(names)
        if not isinstance(items, list) or not items:
            self.problems.append(f"{key}: {items!r} is not a list of operators")
            return local
        for i, item in enumerate(items):
            here = f"{key}.{i}"
            if not isinstance(item, dict):
                self.problems.append(f"{here}: {item!r} is not a mapping of keys to values")
            elif "repeat" in item:
                self._group(item, here, prefix, layer, local)
            else:
                self._operator(item, here, prefix, layer, local)
        return local

    def _group(
        self, item: dict[str, Any], key: str, prefix: str, layer: str | None, local: dict[str, str]
    ) -> None:
        self._unknown_keys(item, key, _ABOUT_GROUP)
        count, name = item["repeat"], str(item.get("name", "group"))
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            self.problems.append(f"{key}.repeat: {count!r} is not a whole number of at least 1")
            return
        found = len(self.problems)
        for turn in range(count):
            label = f"{prefix}{name}.{turn}"
            names = local | ({"previous": self.before} if self.before is not None else {})
            self.read(
                item.get("operators"),
                key=f"{key}.operators",
                prefix=f"{label}.",
                layer=layer or label,
                names=names,
            )
            if len(self.problems) > found:
                return
        if self.before is not None:
            local[name] = self.before

    def _operator(
        self, item: dict[str, Any], key: str, prefix: str, layer: str | None, local: dict[str, str]
    ) -> None:
        kind, name = item.get("op"), item.get("name")
        if kind not in OPERATOR_KINDS:
            near = get_close_matches(str(kind), OPERATOR_KINDS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"accepted: {', '.join(OPERATOR_KINDS)}"
            self.problems.append(f"{key}.op: {kind!r} is no kind of operator ({hint})")
            return
        if not isinstance(name, str) or not name:
            self.problems.append(f"{key}.name: {name!r} is not a name")
            return
        node = f"{prefix}{name}"
        if node in self.graph:
            self.problems.append(f"{key}.name: {name!r} is the name of an earlier operator")
            return
        operator = self._value(item, key, OPERATOR_KINDS[kind], node)
        place = item.get("place", "layers")
        if place not in _PLACES:
            self.problems.append(f"{key}.place: {place!r} is not one of {', '.join(_PLACES)}")
        if operator is None:
            self.graph.add_node(node)
        else:
            self.graph.add_node(node, operator=operator, place=place, layer=layer)
        for source in self._inputs(item, key, local):
            self.graph.add_edge(source, node)
        local[name] = node
        self.before = node

    def _inputs(self, item: dict[str, Any], key: str, local: Mapping[str, str]) -> list[str]:
        listed = item.get("inputs")
        if listed is None:
            return [] if self.before is None else [self.before]
        if not isinstance(listed, list):
            self.problems.append(f"{key}.inputs: {listed!r} is not a list of operator names")
            return []
        for i, name in enumerate(listed):
            if name not in local:
                near = get_close_matches(str(name), local, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"accepted: {', '.join(local) or 'none yet'}"
                self.problems.append(f"{key}.inputs.{i}: {name!r} names no earlier operator ({hint})")
        return [local[name] for name in listed if name in local]

    def _value(self, item: dict[str, Any], key: str, kind: type[Operator], node: str) -> Operator | None:
        self._unknown_keys(item, key, (*_ABOUT_NODE, *(f.name for f in fields(kind))))
        given = {f.name: item[f.name] for f in fields(kind) if f.name in item} | {"name": node}
        missing = [f.name for f in fields(kind) if f.name not in given and f.default is MISSING]
        self.problems += [f"{key}.{name}: is missing" for name in missing]
        negative = [n for n, v in given.items() if isinstance(v, int | float) and v < 0]
        self.problems += [f"{key}.{name}: {given[name]!r} must not be negative" for name in negative]
        if missing or negative:
            return None
        try:
            return validate(kind, given, self.where, prefix=key)
        except SpecError as error:
            self.problems += error.problems
            return None

    def _unknown_keys(self, item: Mapping[str, Any], key: str, accepted: Sequence[str]) -> None:
        for name in item:
            if name not in accepted:
                near = get_close_matches(str(name), accepted, n=1, cutoff=0.6)
                hint = f"did you mean {near[0]}?" if near else f"accepted: {', '.join(accepted)}"
                self.problems.append(f"{key}.{name}: unexpected key ({hint})".lstrip("."))


def model_from_operators(data: Mapping[str, Any], name: str, *, where: str) -> ModelGraph:
    """Return the model that a file's mapping describes (the format is in the module's docstring).

    Raises
    ------
    SpecError
        with every problem of the file, each with its dotted key.
    """
    reader = _Reader(where=where, graph=nx.DiGraph(), problems=[])
    reader._unknown_keys(data, "", _ABOUT_FILE)
    reader.read(data.get("operators"), key="operators", prefix="", layer=None, names={})
    options: dict[str, int] = {}
    for key in ("hidden", "vocab", "max_seq_len"):
        value = data.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            reader.problems.append(f"{key}: {value!r} is not a whole number of at least 1")
        else:
            options[key] = value
    tied = data.get("tied_head", False)
    if not isinstance(tied, bool):
        reader.problems.append(f"tied_head: {tied!r} is neither true nor false")
    if reader.problems:
        raise SpecError(where, list(dict.fromkeys(reader.problems)))
    model = model_from_digraph(reader.graph, name=name, tied_head=tied, source=where, **options)
    return replace(model, source=str(data.get("source") or where))
