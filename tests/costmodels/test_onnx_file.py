"""ONNX files as model graphs; needs the package onnx, which is an extra."""

import math
from pathlib import Path
from typing import Any

import pytest

from costmodels.graph import Elementwise, Embedding, Generic, Matmul, Norm, Operator
from costmodels.model_flops import operator_flops
from costmodels.models import find_model
from hardware.errors import SpecError

onnx = pytest.importorskip("onnx", reason="onnx is an extra; install meshwright[onnx] to run these")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

BATCH, SEQ, WIDTH, VOCAB = 2, 8, 16, 50


def weight(name: str, *dims: int) -> Any:
    values = [0.0] * math.prod(dims)
    return onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, dims, values)


def save(
    file: Path, nodes: list[Any], stored: list[Any], *, given: Any, sizes: list[Any] | None = None
) -> Path:
    made = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, sizes)
    graph = onnx.helper.make_graph(nodes, "net", [given], [made], initializer=stored)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), str(file))
    return file


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, inputs.split(), [output], name=f"{kind}_{output}", **attributes)


def operators(model: Any) -> list[Operator]:
    return [op for i in model.layers for op in model.blocks[i].operators]


def tokens() -> Any:
    return onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [BATCH, SEQ])


def test_a_language_model_with_a_tied_head(tmp_path: Path) -> None:
    nodes = [
        node("Gather", "table ids", "x"),
        node("LayerNormalization", "x scale shift", "n"),
        node("MatMul", "n up", "u"),
        node("Add", "u bias", "v"),
        node("Tanh", "v", "g"),
        node("MatMul", "g down", "d"),
        node("Add", "d x", "r"),
        node("Transpose", "table", "turned", perm=[1, 0]),
        node("MatMul", "r turned", "y"),
    ]
    stored = [
        weight("table", VOCAB, WIDTH),
        weight("scale", WIDTH),
        weight("shift", WIDTH),
        weight("up", WIDTH, 64),
        weight("bias", 64),
        weight("down", 64, WIDTH),
    ]
    model = find_model(str(save(tmp_path / "lm.onnx", nodes, stored, given=tokens())))
    found = operators(model)
    assert model.num_params == VOCAB * WIDTH + 2 * WIDTH + 2 * 64 * WIDTH + 64
    kinds = [Embedding, Norm, Matmul, Elementwise, Elementwise, Matmul, Elementwise, Generic]
    assert [type(op) for op in found] == kinds
    assert sum(operator_flops(op, SEQ) for op in found) == 4 * 64 * WIDTH + 2 * WIDTH * VOCAB


def test_a_convolutional_network_counts_per_sample(tmp_path: Path) -> None:
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4, 3, 16, 16])
    nodes = [
        node("Conv", "x kernel offset", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c scale shift mean variance", "b"),
        node("Relu", "b", "r"),
        node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f classes bias", "y", transB=1),
    ]
    stored = [weight("kernel", 8, 3, 3, 3), weight("classes", 10, 8), weight("bias", 10)]
    stored += [weight(name, 8) for name in ("offset", "scale", "shift", "mean", "variance")]
    model = find_model(str(save(tmp_path / "cnn.onnx", nodes, stored, given=given)))
    found = operators(model)
    assert operator_flops(found[0], 1) == 2 * 8 * 256 * 27
    assert isinstance(found[-1], Matmul)
    assert (found[-1].in_features, found[-1].out_features, found[-1].tokens_frac) == (8, 10, 1.0)
    assert model.num_params == 8 * 27 + 8 + 16 + 80 + 10


def test_a_view_of_the_input_is_no_constant(tmp_path: Path) -> None:
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 4, 8])
    nodes = [node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "t w", "y")]
    model = find_model(str(save(tmp_path / "view.onnx", nodes, [weight("w", 4, 5)], given=given)))
    assert sum(operator_flops(op, 1) for op in operators(model)) == 2 * 8 * 4 * 5


def test_open_shapes_and_unknown_work_are_errors(tmp_path: Path) -> None:
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])
    file = save(tmp_path / "open.onnx", [node("MatMul", "x w", "y")], [weight("w", 4, 4)], given=given)
    with pytest.raises(SpecError, match=r"x: its shape is open; export with fixed sizes"):
        find_model(str(file))
    fixed = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 4])
    file = save(tmp_path / "det.onnx", [node("Det", "x", "y")], [], given=fixed)
    with pytest.raises(SpecError, match="the work of Det is not known"):
        find_model(str(file))


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(SpecError, match=r"text\.onnx: no ONNX model"):
        find_model(str(tmp_path / "text.onnx"))
    with pytest.raises(SpecError, match=r"absent\.onnx: cannot be read"):
        find_model(str(tmp_path / "absent.onnx"))
