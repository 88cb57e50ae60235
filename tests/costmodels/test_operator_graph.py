"""Networks of operators: from graphs, from files, and what is said of wrong ones."""

from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from costmodels.graph import Elementwise, Embedding, Generic, Matmul, Split
from costmodels.graph_import.operator_graph import model_from_digraph, model_from_operators
from costmodels.models import find_model
from hardware.errors import SpecError


def conv(name: str, **changes: Any) -> dict[str, Any]:
    fields = {"op": "generic", "flops": 2e6, "reads": 100, "writes": 50, "saved": 100, "num_params": 9}
    return {"name": name} | fields | changes


def build(*operators: dict[str, Any], **options: Any) -> Any:
    return model_from_operators({"operators": list(operators), **options}, "net", where="net.yaml")


def problems(*operators: Any, **options: Any) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        build(*operators, **options)
    assert caught.value.where == "net.yaml"
    return caught.value.problems


def test_a_chain_is_cut_between_all_operators_and_equal_ones_share_a_block() -> None:
    model = build(conv("a"), conv("b"), conv("c", writes=10))
    assert model.layers == (0, 0, 1)
    assert model.num_params == 27
    assert model.hidden == 50
    assert model.kind == "graph"


def test_a_residual_keeps_its_layer_whole() -> None:
    add = {"name": "add", "op": "elementwise", "inputs": ["b", "a"], "reads": 100, "writes": 50, "saved": 0}
    model = build(conv("a"), conv("b"), add, conv("c"))
    assert [len(model.blocks[i].operators) for i in model.layers] == [1, 2, 1]


def test_turns_of_a_group_are_layers_that_read_what_came_before() -> None:
    add = {
        "name": "add",
        "op": "elementwise",
        "inputs": ["conv", "previous"],
        "reads": 100,
        "writes": 50,
        "saved": 0,
    }
    group = {"name": "stage", "repeat": 3, "operators": [conv("conv"), add]}
    model = build(conv("stem"), group, conv("end", inputs=["stage"]))
    assert model.layers == (0, 1, 1, 1, 0)
    assert [op.name for op in model.blocks[1].operators] == ["stage.0.conv", "stage.0.add"]


def test_places_first_and_last() -> None:
    words = {"name": "words", "op": "embedding", "num_rows": 100, "features": 8, "place": "first"}
    head = {
        "name": "head",
        "op": "matmul",
        "in_features": 8,
        "out_features": 100,
        "split": "column",
        "place": "last",
    }
    model = build(words, conv("a"), head, vocab=100, tied_head=True, hidden=8, max_seq_len=16)
    assert isinstance(model.inputs[0], Embedding)
    assert isinstance(model.outputs[0], Matmul)
    assert model.num_params == 800 + 9
    assert (model.hidden, model.vocab, model.max_seq_len) == (8, 100, 16)


def test_digraph_order_does_not_depend_on_insertion_of_edges() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    ops = {
        "a": Generic(name="a", flops=1, reads=1, writes=4, saved=1),
        "b": Matmul(name="b", in_features=4, out_features=4, split=Split.ROW),
        "c": Elementwise(name="c", reads=8, writes=4, saved=0),
    }
    for name, operator in ops.items():
        graph.add_node(name, operator=operator)
    graph.add_edges_from([("b", "c"), ("a", "c"), ("a", "b")])
    model = model_from_digraph(graph, name="net")
    assert [op.name for i in model.layers for op in model.blocks[i].operators] == ["a", "b", "c"]
    assert [model.blocks[i].num_reductions for i in model.layers] == [0, 1]


def test_cycles_and_bare_nodes_are_refused() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph([("a", "b"), ("b", "a")])
    with pytest.raises(SpecError) as caught:
        model_from_digraph(graph, name="net")
    assert caught.value.problems == (
        "a: has no operator",
        "b: has no operator",
        "operators: a -> b -> a is a cycle",
    )
    with pytest.raises(SpecError, match="the network has none"):
        model_from_digraph(nx.DiGraph(), name="net")


@pytest.mark.parametrize(
    ("operators", "says"),
    [
        (
            [conv("a", op="generik")],
            "operators.0.op: 'generik' is no kind of operator (did you mean generic?)",
        ),
        ([conv("a"), conv("a")], "operators.1.name: 'a' is the name of an earlier operator"),
        ([conv("a"), conv("b", inputs=["aa"])], "operators.1.inputs.0: 'aa' names no earlier operator"),
        ([conv("a", flop=3)], "operators.0.flop: unexpected key (did you mean flops?)"),
        ([conv("a", flops="many")], "operators.0.flops: 'many' is not accepted"),
        ([conv("a", flops=-1)], "operators.0.flops: -1 must not be negative"),
        ([conv("a", place="end")], "operators.0.place: 'end' is not one of first, layers, last"),
        ([{"name": "a", "op": "matmul"}], "operators.0.in_features: is missing"),
        ([{"op": "matmul"}], "operators.0.name: None is not a name"),
        (["conv"], "operators.0: 'conv' is not a mapping"),
        ([{"name": "g", "repeat": 0, "operators": []}], "operators.0.repeat: 0 is not a whole number"),
        (
            [{"name": "g", "repeat": 2, "operators": []}],
            "operators.0.operators: [] is not a list of operators",
        ),
        ([conv("a", split="rows")], "operators.0.split: 'rows' is not accepted"),
        ([], "operators: [] is not a list of operators"),
    ],
)
def test_problems_are_located(operators: list[Any], says: str) -> None:
    assert any(problem.startswith(says) for problem in problems(*operators))


def test_all_problems_of_a_file_come_at_once() -> None:
    found = problems(conv("a", flop=3), conv("b", inputs=["x"]), hiden=3, vocab=0)
    assert len(found) == 4
    assert found[0] == "hiden: unexpected key (did you mean hidden?)"
    assert found[-1] == "vocab: 0 is not a whole number of at least 1"


def test_a_file_is_found_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "net.yaml"
    file.write_text(
        "name: tiny\nsource: by hand\noperators:\n"
        "  - {name: a, op: generic, flops: 2.0e6, reads: 10, writes: 5, saved: 10}\n"
    )
    model = find_model(str(file))
    assert (model.name, model.source, model.num_layers) == ("tiny", "by hand", 1)


def test_the_example_network_is_planned_per_image() -> None:
    model = find_model(str(Path(__file__).parents[2] / "examples" / "models" / "small-cnn.yaml"))
    assert model.name == "small-cnn"
    assert model.num_params == 9408 + 4 * 2 * 36864 + 64 * 1000 + 1000
    stages = [i for i in model.layers if len(model.blocks[i].operators) == 4]
    assert len(stages) == 4
    assert len(set(stages)) == 1
