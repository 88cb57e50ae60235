"""Build a model graph from an ONNX file; needs the package onnx (the extra `onnx`).

Matrix products with a stored right side become `Matmul`, look-ups in a stored table `Embedding`, other
products and convolutions `Generic` with their work. Shapes must be known: a dimension that the file leaves
open is an error, as is an operator whose work is not known. Parameters are the stored floating-point tensors
of more than one element, a stored mask included; the running means and variances of batch norms are not.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx

from costmodels.graph import Embedding, Generic, Matmul, ModelGraph, Norm, Operator, Split
from costmodels.graph_import.onnx_operators import (
    KEEPS_NOTHING,
    MADE,
    MOVES,
    NORMS,
    POINTWISE,
    RECURRENT,
    VIEWS,
)
from costmodels.graph_import.operator_graph import model_from_digraph
from costmodels.graph_import.per_token import vector_operator, work_operator
from hardware.errors import InputError, SpecError

__all__ = ["read_onnx"]

_LAYER = re.compile(r"((?:^|/)(?:[\w.]+/)*?[\w.]*[._]\d+)/")
_FLOATS = frozenset({1, 10, 11, 16, 17, 18, 19, 20})
"""Element types that are floating point: float, half, double, bfloat16 and four of 8 bits (onnx.proto)."""


def read_onnx(path: Path | str, *, num_tokens: int | None = None) -> ModelGraph:
    """Return the graph of the ONNX file at `path`; its weights are not read.

    Parameters
    ----------
    num_tokens : tokens (or samples) in the inputs that the shapes are for. By default the elements of the
        first input if that holds whole numbers, else its first dimension.

    Raises
    ------
    InputError
        if the package onnx is not installed.
    SpecError
        if the file is no ONNX model, leaves dimensions open, or holds operators whose work is not known.
    """
    file = Path(path)
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError as error:
        message = f"{file}: reading an ONNX file needs the package onnx; install the extra meshwright[onnx]"
        raise InputError(message) from error
    try:
        model = onnx.load(str(file), load_external_data=False)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except OSError as error:
        raise SpecError(str(file), [f"cannot be read ({error.strerror})"]) from error
    except (DecodeError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise SpecError(str(file), [f"no ONNX model: {str(error).splitlines()[0]}"]) from error
    if not model.graph.node:
        raise SpecError(str(file), ["no ONNX model, or one without operators"])
    reader = _Reader(graph=nx.DiGraph())
    reader.shapes_of(model.graph)
    reader.num_tokens = num_tokens or reader.count_tokens(model.graph)
    for index, node in enumerate(model.graph.node):
        reader.node(node, index)
    if reader.problems:
        raise SpecError(str(file), list(dict.fromkeys(reader.problems)))
    return model_from_digraph(reader.graph, name=file.stem, source=str(file))


def _attribute(node: Any, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return {2: attribute.i, 3: attribute.s, 7: list(attribute.ints)}.get(attribute.type, default)
    return default


@dataclass(slots=True)
class _Reader:
    """What of the file has been read so far."""

    graph: "nx.DiGraph[str]"
    num_tokens: int = 1
    shapes: dict[str, tuple[int, ...] | None] = field(default_factory=dict)
    """Tensor -> its shape; None where a dimension is open."""
    stored: dict[str, bool] = field(default_factory=dict)
    """Stored tensor -> whether it counts as parameters."""
    makers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)
    """View of a stored tensor -> that tensor."""
    constants: set[str] = field(default_factory=set)
    """Tensors that do not depend on the inputs' values."""
    counted: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def shapes_of(self, graph: Any) -> None:
        """Note the shapes of all tensors, and which are stored."""
        for info in (*graph.input, *graph.value_info, *graph.output):
            sizes = [d.dim_value if d.HasField("dim_value") else 0 for d in info.type.tensor_type.shape.dim]
            known = info.type.tensor_type.HasField("shape") and all(sizes)
            self.shapes[info.name] = tuple(sizes) if known else None
        for tensor in graph.initializer:
            self.shapes[tensor.name] = tuple(tensor.dims)
            self.stored[tensor.name] = tensor.data_type in _FLOATS and math.prod(tensor.dims) > 1

    def count_tokens(self, graph: Any) -> int:
        """Return the tokens of the first input."""
        for info in graph.input:
            shape = self.shapes[info.name]
            if info.name in self.stored or not shape:
                continue
            return shape[0] if info.type.tensor_type.elem_type in _FLOATS else math.prod(shape)
        return 1

    def size(self, name: str) -> int:
        """Return the elements of a tensor; an open shape is noted as a problem."""
        shape = self.shapes.get(name)
        if shape is None:
            self.problems.append(f"{name}: its shape is open; export with fixed sizes")
            return 1
        return math.prod(shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor; an open one is noted as a problem."""
        self.size(name)
        return self.shapes.get(name) or (1, 1)

    def node(self, node: Any, index: int) -> None:
        """Add the operator of one node, or pass through what costs nothing."""
        sources = [name for name in node.input if name]
        made = tuple(dict.fromkeys(m for name in sources for m in self.makers.get(name, ())))
        kind = node.op_type
        name = node.name or f"{kind}_{index}"
        fixed = kind in MADE or all(s in self.stored or s in self.constants for s in sources)
        if fixed or kind in VIEWS:
            for output in node.output:
                self.makers[output] = made
                if fixed:
                    self.constants.add(output)
                if kind in VIEWS and sources and sources[0] in self.stored:
                    self.stored[output] = self.stored[sources[0]]
                    self.roots[output] = self.root(sources[0])
            return
        operator = self.operator(node, kind, name, sources)
        if operator is None:
            self.problems.append(f"{name}: the work of {kind} is not known")
            return
        found = _LAYER.match(node.name)
        self.graph.add_node(name, operator=operator, layer=found.group(1) if found else None)
        self.graph.add_edges_from((maker, name) for maker in made)
        for output in node.output:
            self.makers[output] = (name,)

    def root(self, name: str) -> str:
        """Return the stored tensor that `name` shows."""
        return self.roots.get(name, name)

    def is_fresh(self, name: str) -> bool:
        """Return whether a tensor is a parameter that no earlier operator counted."""
        return self.stored.get(name, False) and self.root(name) not in self.counted

    def params(self, names: list[str]) -> int:
        """Return the elements of the parameters among `names` that no earlier operator counted."""
        fresh = [n for n in dict.fromkeys(names) if self.is_fresh(n)]
        self.counted.update(self.root(n) for n in fresh)
        return sum(self.size(name) for name in fresh)

    def operator(self, node: Any, kind: str, name: str, sources: list[str]) -> Operator | None:
        """Return what the node does, or None where its work is not known."""
        if kind in {"MatMul", "Gemm"}:
            return self.product(node, kind, name, sources)
        if kind in {"Conv", "ConvTranspose"}:
            weight = math.prod(self.shape(sources[1])[1:])
            outputs = self.size(sources[0] if kind == "ConvTranspose" else node.output[0])
            return self.work(node, name, sources, 2.0 * outputs * weight)
        if kind in RECURRENT:
            rows = self.size(sources[0]) / self.shape(sources[0])[-1]
            matrices = sum(self.size(s) for s in sources[1:3])
            return self.work(node, name, sources, 2.0 * rows * matrices)
        if kind == "Einsum":
            return self.einsum(node, name, sources)
        if kind == "Gather" and self.stored.get(sources[0]) and len(self.shape(sources[0])) == 2:
            rows, features = self.shape(sources[0])
            if self.params(sources[:1]):
                return Embedding(name=name, num_rows=rows, features=features, split=Split.NONE)
        if kind in NORMS:
            return self.norm(node, kind, name, sources)
        if kind in POINTWISE or kind in MOVES:
            read = sum(self.size(s) for s in sources if s not in self.stored)
            return vector_operator(
                name,
                read=read,
                written=self.size(node.output[0]),
                kept=0 if kind in KEEPS_NOTHING else read,
                mask=0,
                num_params=self.params(sources),
                num_tokens=self.num_tokens,
            )
        return None

    def work(self, node: Any, name: str, sources: list[str], flops: float) -> Generic:
        """Return an operator of that much work."""
        return work_operator(
            name,
            flops=flops,
            read=sum(self.size(s) for s in sources if s not in self.stored),
            written=sum(self.size(o) for o in node.output if o),
            num_params=self.params(sources),
            num_tokens=self.num_tokens,
        )

    def product(self, node: Any, kind: str, name: str, sources: list[str]) -> Operator:
        """Return a matrix product, a dense layer where its right side is stored."""
        left, right = self.shape(sources[0]), self.shape(sources[1])
        inner = left[0] if kind == "Gemm" and _attribute(node, "transA", 0) else left[-1]
        outputs = self.size(node.output[0])
        out = self.shape(node.output[0])[-1]
        biased = len(sources) > 2
        plain_bias = not biased or (self.is_fresh(sources[2]) and self.shape(sources[2]) == (out,))
        if not self.is_fresh(sources[1]) or len(right) != 2 or not plain_bias:
            return self.work(node, name, sources, 2.0 * outputs * inner)
        self.params(sources)
        return Matmul(
            name=name,
            in_features=inner,
            out_features=out,
            split=Split.NONE,
            bias=biased,
            tokens_frac=outputs / out / self.num_tokens,
        )

    def einsum(self, node: Any, name: str, sources: list[str]) -> Generic | None:
        """Return a product over all the indices of the equation; None where it leaves some unnamed."""
        equation = bytes(_attribute(node, "equation", b"")).decode().replace(" ", "")
        if "." in equation or len(sources) > 2:
            return None
        sizes: dict[str, int] = {}
        for letters, source in zip(equation.split("->")[0].split(","), sources, strict=True):
            sizes |= dict(zip(letters, self.shape(source), strict=True))
        return self.work(node, name, sources, 2.0 * math.prod(sizes.values()))

    def norm(self, node: Any, kind: str, name: str, sources: list[str]) -> Operator:
        """Return a norm over the last dimension where it is one, else an operator of its traffic."""
        learned = sources[1:3]
        features = self.size(learned[0]) if learned else 0
        copies, rest = divmod(self.size(sources[0]), features * self.num_tokens) if features else (0, 1)
        over_last = kind in {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
        fresh = all(self.is_fresh(n) for n in learned)
        if rest or not over_last or not fresh:
            return self.work(node, name, [sources[0], *learned], 0.0)
        self.params(learned)
        return Norm(
            name=name,
            features=features,
            copies=copies,
            rms=kind != "LayerNormalization",
            bias=len(learned) == 2,
        )
