"""Build a model graph from a `torch.export` program.

Each ATen operator becomes an operator with its floating-point work and the elements it moves, per token.
Views cost nothing and are passed through. Linear layers, embeddings, norms and fused attention keep their
kind; other matrix products and convolutions become `Generic`. Nothing is known of tensor parallelism, so
every operator is replicated (`Split.NONE`). An operator whose work is not known here is an error, never a
free one.

torch is imported by whoever made the program; this module needs it only to read a saved one.
"""

import math
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx

from costmodels.graph import (
    Attention,
    Embedding,
    Generic,
    Matmul,
    ModelGraph,
    Norm,
    Operator,
    Split,
)
from costmodels.graph_import.operator_graph import model_from_digraph
from costmodels.graph_import.per_token import vector_operator, work_operator
from costmodels.graph_import.torch_operators import (
    KEEPS_NOTHING,
    MADE,
    MOVES,
    NORMS,
    PRODUCTS,
    RECURRENT,
    VIEWS,
)
from hardware.errors import InputError, SpecError

__all__ = ["model_from_export", "read_torch_export"]

_LAYER = re.compile(r"^(.*?(?:^|\.)\d+)(?:\.|$)")


def read_torch_export(path: Path | str, *, num_tokens: int | None = None) -> ModelGraph:
    """Return the graph of a program saved by `torch.export.save`; needs torch (the extra `torch`).

    Raises
    ------
    InputError
        if torch is not installed.
    SpecError
        if the file is no exported program, or holds operators whose work is not known.
    """
    file = Path(path)
    try:
        import torch
    except ModuleNotFoundError as error:
        message = f"{file}: reading a torch.export program needs torch; install the extra meshwright[torch]"
        raise InputError(message) from error
    if not zipfile.is_zipfile(file):
        raise SpecError(str(file), ["is no archive of torch.export.save, or does not exist"])
    try:
        program = torch.export.load(file)
    except (RuntimeError, ValueError, KeyError) as error:
        raise SpecError(str(file), [f"no program of torch.export: {error}"]) from error
    return model_from_export(program, name=file.stem, num_tokens=num_tokens, source=str(file))


def model_from_export(
    program: Any, *, name: str, num_tokens: int | None = None, source: str = ""
) -> ModelGraph:
    """Return the graph of a `torch.export.ExportedProgram`.

    Parameters
    ----------
    num_tokens : tokens (or, in a network without tokens, samples) in the example that the program was
        exported with. By default the elements of its first input if that holds whole numbers, else its first
        dimension.

    Raises
    ------
    SpecError
        if an operator's work is not known.
    """
    reader = _Reader(num_tokens=num_tokens or _count_tokens(program))
    signature = program.graph_signature
    state = {**signature.inputs_to_parameters}
    ignored = {*signature.inputs_to_buffers, *signature.inputs_to_lifted_tensor_constants}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            reader.placeholder(node, parameter=state.get(node.name), ignored=node.name in ignored)
        elif node.op == "call_function":
            reader.call(node)
    if reader.unknown:
        problems = [f"{op}: its work is not known" for op in sorted(reader.unknown)]
        raise SpecError(source or name, problems)
    return model_from_digraph(reader.graph, name=name, source=source)


def _count_tokens(program: Any) -> int:
    users = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in users:
            value = node.meta["val"]
            shape = tuple(value.shape)
            return math.prod(shape) if not value.is_floating_point() else int(shape[0]) if shape else 1
    return 1


def _shape(node: Any) -> tuple[int, ...]:
    value = node.meta.get("val")
    value = value[0] if isinstance(value, tuple | list) and value else value
    return tuple(int(size) for size in value.shape) if hasattr(value, "shape") else ()


def _size(node: Any) -> int:
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return sum(math.prod(int(n) for n in v.shape) for v in values if hasattr(v, "shape"))


def _option(node: Any, index: int, key: str, default: Any) -> Any:
    if key in node.kwargs:
        return node.kwargs[key]
    return node.args[index] if len(node.args) > index else default


@dataclass(slots=True)
class _Reader:
    """What of the program has been read so far."""

    num_tokens: int
    graph: "nx.DiGraph[str]" = field(default_factory=nx.DiGraph)
    makers: dict[Any, tuple[str, ...]] = field(default_factory=dict)
    """Node -> the operators whose results it shows."""
    weights: dict[Any, str] = field(default_factory=dict)
    """Node that shows a parameter -> that parameter."""
    counted: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)

    def placeholder(self, node: Any, *, parameter: str | None, ignored: bool) -> None:
        """Note an input, a parameter or a buffer."""
        if parameter is not None:
            self.weights[node] = parameter
        self.makers[node] = ()

    def call(self, node: Any) -> None:
        """Add the operator of `node`, or pass through what costs nothing."""
        op = _op_name(node.target)
        sources = list(_inputs(node))
        if op in MADE or not sources:
            self.makers[node] = ()
            return
        if op in VIEWS:
            self.makers[node] = tuple(dict.fromkeys(m for s in sources for m in self.makers.get(s, ())))
            if sources[0] in self.weights:
                self.weights[node] = self.weights[sources[0]]
            return
        operator = self._operator(op, node, sources)
        if operator is None:
            self.unknown.add(op)
            return
        self.graph.add_node(node.name, operator=operator, layer=_layer(node))
        for source in sources:
            for maker in self.makers.get(source, ()):
                self.graph.add_edge(maker, node.name)
        self.makers[node] = (node.name,)

    def _params(self, sources: Iterable[Any]) -> int:
        """Return the elements of the parameters among `sources` that no earlier operator counted."""
        total = 0
        for source in sources:
            key = self.weights.get(source)
            if key is not None and key not in self.counted:
                self.counted.add(key)
                total += _size(source)
        return total

    def _operator(self, op: str, node: Any, sources: list[Any]) -> Operator | None:
        if op in PRODUCTS:
            return self._product(op, node, sources)
        if op.startswith("conv") or op == "_convolution":
            return self._convolution(node, sources)
        if op == "einsum":
            return self._einsum(node, sources)
        if op in RECURRENT:
            return self._recurrent(node, sources)
        if "scaled_dot_product" in op:
            return self._attention(node, sources)
        if op == "embedding":
            return self._embedding(node, sources)
        if op in NORMS:
            return self._norm(op, node, sources)
        if op in MOVES or "dropout" in op or _is_pointwise(node.target):
            return self._vector(op, node, sources)
        return None

    def _generic(self, node: Any, sources: list[Any], flops: float) -> Generic:
        read = sum(_size(s) for s in sources if s not in self.weights)
        return work_operator(
            node.name,
            flops=flops,
            read=read,
            written=_size(node),
            num_params=self._params(sources),
            num_tokens=self.num_tokens,
        )

    def _product(self, op: str, node: Any, sources: list[Any]) -> Operator:
        left, right = sources[1:3] if op in {"addmm", "baddbmm"} else sources[:2]
        inner = _shape(left)[-1]
        if right not in self.weights or self.weights[right] in self.counted:
            return self._generic(node, sources, 2.0 * _size(node) * inner)
        bias = (sources[0] in self.weights) if op == "addmm" else len(sources) > 2
        out = _shape(node)[-1]
        if self._params(sources) != inner * out + (out if bias else 0):
            # A bias shared with another layer, or one that broadcasts: count what there is, as it is.
            self.counted -= {self.weights[s] for s in sources if s in self.weights}
            return self._generic(node, sources, 2.0 * _size(node) * inner)
        return Matmul(
            name=node.name,
            in_features=inner,
            out_features=out,
            split=Split.NONE,
            bias=bias,
            tokens_frac=_size(node) / out / self.num_tokens,
        )

    def _einsum(self, node: Any, sources: list[Any]) -> Generic | None:
        """Return a product over all the indices of the equation; None where it leaves some unnamed."""
        equation = str(node.args[0]).replace(" ", "")
        if "." in equation or len(sources) > 2:
            return None
        names = equation.split("->")[0].split(",")
        sizes: dict[str, int] = {}
        for letters, source in zip(names, sources, strict=True):
            sizes |= dict(zip(letters, _shape(source), strict=True))
        return self._generic(node, sources, 2.0 * math.prod(sizes.values()))

    def _recurrent(self, node: Any, sources: list[Any]) -> Generic:
        """Return a recurrent network: each of its matrices multiplies every token once."""
        rows = _size(sources[0]) / _shape(sources[0])[-1]
        matrices = sum(_size(s) for s in sources if s in self.weights and len(_shape(s)) == 2)
        return self._generic(node, sources, 2.0 * rows * matrices)

    def _convolution(self, node: Any, sources: list[Any]) -> Generic:
        weight = _shape(sources[1])
        per_output = math.prod(weight[1:])
        transposed = "transpose" in _op_name(node.target) or bool(_option(node, 6, "transposed", False))
        outputs = _size(sources[0]) if transposed else _size(node)
        return self._generic(node, sources, 2.0 * outputs * per_output)

    def _attention(self, node: Any, sources: list[Any]) -> Operator:
        q, k, v = (_shape(s) for s in sources[:3])
        flops = 2.0 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])
        causal = bool(_option(node, 5, "is_causal", False))
        if len(q) != 4 or q[0] * q[2] != self.num_tokens or k[2] != q[2]:
            return self._generic(node, sources, flops)
        return Attention(
            name=node.name,
            num_heads=q[1],
            num_kv_heads=k[1],
            head_dim=q[3],
            value_dim=v[3],
            causal=causal,
        )

    def _embedding(self, node: Any, sources: list[Any]) -> Operator:
        rows, features = _shape(sources[0])
        if self._params(sources[:1]):
            return Embedding(name=node.name, num_rows=rows, features=features, split=Split.NONE)
        return self._vector("embedding", node, [node])

    def _norm(self, op: str, node: Any, sources: list[Any]) -> Operator:
        total = _size(sources[0])
        params = [s for s in sources[1:] if s in self.weights]
        features = _size(params[0]) if params else 0
        fresh = all(self.weights[p] not in self.counted for p in params)
        copies, rest = divmod(total, features * self.num_tokens) if features else (0, 1)
        if "layer_norm" not in op and op != "rms_norm":
            rest = 1
        if rest or not fresh or len(params) > 2:
            return self._generic(node, sources, 0.0)
        self._params(params)
        return Norm(
            name=node.name, features=features, copies=copies, rms=op == "rms_norm", bias=len(params) == 2
        )

    def _vector(self, op: str, node: Any, sources: list[Any]) -> Operator:
        params = self._params(sources)
        read = sum(_size(s) for s in sources if s not in self.weights)
        dropout = "dropout" in op and bool(_option(node, 2, "train", True))
        kept = 0 if op in KEEPS_NOTHING or "dropout" in op else read
        mask = _size(node) if dropout else 0
        return vector_operator(
            node.name,
            read=read,
            written=_size(node),
            kept=kept,
            mask=mask,
            num_params=params,
            num_tokens=self.num_tokens,
        )


def _inputs(node: Any) -> Iterator[Any]:
    """Yield the nodes that `node` reads, in order, lists opened."""
    for value in (*node.args, *node.kwargs.values()):
        for item in value if isinstance(value, list | tuple) else (value,):
            shown = getattr(item, "meta", {}).get("val")
            if hasattr(shown, "shape") or isinstance(shown, list | tuple):
                yield item


def _op_name(target: Any) -> str:
    """Return the operator's name without name space and overload, for example "linear"."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return str(getattr(target, "__name__", target))
    return str(schema.name).split("::")[-1]


def _is_pointwise(target: Any) -> bool:
    return any(str(tag).endswith("pointwise") for tag in getattr(target, "tags", ()))


def _layer(node: Any) -> str | None:
    """Return the outermost numbered module that `node` lies in, for example "layers.3"."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, _ in stack.values():
        found = _LAYER.match(str(path))
        if found:
            return found.group(1)
    return None
