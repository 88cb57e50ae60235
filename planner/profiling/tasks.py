"""What to measure: default shapes, those of a plan, and which of them tells most next."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from costmodels.samples import KINDS, Sample
from hardware.errors import InputError

__all__ = ["WHAT", "Task", "default_tasks", "most_uncertain", "wanted_kinds"]

WHAT: dict[str, tuple[str, ...]] = {
    "kernels": ("matmul", "attention_forward", "attention_backward", "optimizer", "launch"),
    "memory": ("copy", "elementwise", "norm"),
    "collectives": ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "p2p"),
    "transfers": ("host_to_device", "device_to_host"),
    "storage": ("nvme_write", "nvme_read"),
    "steps": ("step",),
}
"""What `--what` may name; power, clock and temperature are recorded with everything."""

_SPREAD = 1.0
"""Distance in ln(shape) at which a measurement says little about another shape (assumed)."""
_NEVER_MEASURED = 1.2
_STEP_WEIGHT = 2.5
"""A whole step says more than one kernel: it holds everything that runs together."""


_SMALL_MODELS = (
    (256, 1024, 4, 4, 2048, 64), (128, 512, 8, 4, 1024, 128), (320, 1280, 4, 4, 512, 32),
    (160, 640, 8, 4, 1536, 128),
)  # fmt: skip
_LARGE_MODELS = (
    (2048, 8192, 16, 16, 32768, 2048), (1024, 4096, 24, 16, 32768, 1024), (4096, 16384, 4, 32, 32768, 2048),
)  # fmt: skip
"""Hidden and feed-forward size, layers, heads, vocabulary and sequence of models whose steps are measured: 2
to 5 million parameters on processors, 0.4 to 1.1 billion on accelerators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One shape of one kind to be measured."""

    kind: str
    shape: tuple[tuple[str, float], ...]
    dtype: str = "fp32"
    prior_log_sigma: float = _NEVER_MEASURED
    """How unsure the cost model is about this shape before it is measured."""

    @classmethod
    def of(cls, kind: str, dtype: str = "fp32", **shape: float) -> "Task":
        """Return a task with its shape in the order of the file format."""
        return cls(kind=kind, shape=tuple((n, float(shape[n])) for n in KINDS[kind]), dtype=dtype)


def wanted_kinds(what: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of sample that the names in `what` mean; all but steps and storage for none.

    Raises
    ------
    InputError
        naming what is not known.
    """
    every = tuple(kind for kinds in WHAT.values() for kind in kinds)
    unknown = [name for name in what if name not in WHAT and name not in every]
    if unknown:
        message = f"--what {unknown[0]!r} is not known; accepted: {', '.join((*WHAT, *every))}"
        raise InputError(message)
    chosen = what or ("kernels", "memory", "collectives", "transfers")
    return tuple(kind for name in chosen for kind in WHAT.get(name, (name,)))


def default_tasks(kinds: Sequence[str], *, dtype: str, num_ranks: int, large: bool) -> list[Task]:
    """Return shapes that models and degrees produce, small ones for a processor, large ones for a GPU."""
    found: list[Task] = []
    for kind in kinds:
        if kind == "matmul":
            found += _matmuls(dtype, large)
        elif kind.startswith("attention"):
            found += _attentions(kind, dtype, large)
        elif kind == "optimizer":
            top = 27 if large else 22
            found += [Task.of(kind, "fp32", num_params=2.0**p) for p in range(14, top + 1, 2)]
        elif kind == "launch":
            found.append(Task.of(kind, dtype))
        elif kind in WHAT["collectives"]:
            found += _collectives(kind, dtype, num_ranks, large)
        elif kind == "step":
            found += _steps(dtype, num_ranks, large)
        else:
            powers = range(12, 31, 2) if large else range(12, 27, 2)
            found += [Task.of(kind, dtype, num_bytes=2.0**p) for p in powers]
    return found


def _matmuls(dtype: str, large: bool) -> list[Task]:
    rows = (1, 16, 128, 1024, 4096, 8192) if large else (64, 96, 192, 256, 384, 768, 1024)
    wide = (1024, 2048, 4096, 8192, 14336) if large else (64, 96, 192, 256, 384, 768, 1024)
    shapes = [(m, n, k) for m, n, k in product(rows, wide, wide) if large or m * n * k <= 2**30]
    return [Task.of("matmul", dtype, m=m, n=n, k=k) for m, n, k in shapes]


def _attentions(kind: str, dtype: str, large: bool) -> list[Task]:
    axes = (
        ((1, 2, 8), (512, 2048, 4096, 8192), (8, 16, 32), (64, 128))
        if large
        else ((1, 2, 4), (64, 96, 128, 192, 256), (1, 2, 4, 8), (32, 48, 64))
    )
    return [
        Task.of(kind, dtype, batch=b, q_len=q, heads=h, kv_heads=h, head_dim=d)
        for b, q, h, d in product(*axes)
        if b * q * q * h * d <= (2**40 if large else 2**27)
    ]


def _collectives(kind: str, dtype: str, num_ranks: int, large: bool) -> list[Task]:
    sizes = [2.0**p for p in range(10, 31 if large else 25, 2)]
    shapes = [
        (stride, degree)
        for degree in (2**p for p in range(1, 12))
        for stride in (2**p for p in range(12))
        if stride * degree <= num_ranks and num_ranks % (stride * degree) == 0
    ]
    if kind == "p2p":
        shapes = [(stride, degree) for stride, degree in shapes if degree == 2]
    return [
        Task.of(kind, dtype, message_bytes=size, stride=stride, degree=degree)
        for size, (stride, degree) in product(sizes, shapes)
    ]


def _steps(dtype: str, num_ranks: int, large: bool) -> list[Task]:
    """Return whole steps of models, every way to lay them over the ranks."""
    cuts = [
        (tp, pp, num_ranks // (tp * pp))
        for tp in (1, 2, 4, 8)
        for pp in (1, 2, 4, 8)
        if num_ranks % (tp * pp) == 0
    ]
    models = _LARGE_MODELS if large else _SMALL_MODELS
    return [
        Task.of(
            "step", dtype, hidden=h, ffn_hidden=f, num_layers=layers, num_heads=heads, vocab=vocab,
            seq_len=length, global_batch=8, tp=tp, pp=pp, dp=dp, micro_batch=micro,
        )
        for micro in (2, 1)
        for h, f, layers, heads, vocab, length in models
        for tp, pp, dp in cuts
        if layers % pp == 0 and heads % tp == 0 and 8 % (dp * micro) == 0
    ]  # fmt: skip


def _group_size(measured: Task | Sample) -> float:
    return dict(measured.shape).get("degree", 0.0)


def most_uncertain(tasks: Sequence[Task], measured: Iterable[Sample]) -> int | None:
    """Return which task the cost model is least sure about, given what was measured; None when none is left.

    A shape close to a measured one of its kind is nearly known: its uncertainty falls with the distance to
    the nearest, as that of a smooth function does. Kinds take turns by weighing each by how many of its
    shapes are known already. Collectives over groups of another size are another kind: what two ranks take
    says little about four.
    """
    if not tasks:
        return None
    known: dict[tuple[str, str, float], list[list[float]]] = {}
    for sample in measured:
        point = [np.log(max(v, 1.0)) for _, v in sample.shape]
        known.setdefault((sample.kind, sample.dtype, _group_size(sample)), []).append(point)
    scores = np.empty(len(tasks))
    for index, task in enumerate(tasks):
        near = known.get((task.kind, task.dtype, _group_size(task)), [])
        share = 1.0 / (1.0 + len(near))
        if near and task.shape:
            here = np.array([np.log(max(v, 1.0)) for _, v in task.shape])
            distance = float(np.min(np.sum((np.array(near) - here) ** 2, axis=1)))
            share *= 1.0 - np.exp(-distance / (2.0 * _SPREAD**2))
        scores[index] = task.prior_log_sigma * share * (_STEP_WEIGHT if task.kind == "step" else 1.0)
    return int(np.argmax(scores))
