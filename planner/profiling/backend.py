"""What a back end must do, and the one that any machine has: numpy, one process."""

import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hardware.errors import InputError
from planner.profiling.ranks import Ranks

__all__ = ["BACKENDS", "Backend", "Call", "KernelFailedError", "NumpyBackend", "make_backend", "storage_call"]

Call = Callable[[], object]
Shape = Mapping[str, float]

BACKENDS = ("numpy", "cpu", "cuda", "rocm", "npu")
"""numpy, or torch on the CPU (gloo), CUDA (NCCL), ROCm (RCCL) or Ascend (torch_npu, HCCL)."""


class KernelFailedError(RuntimeError):
    """A kernel could not be run at one shape; says why. The profile goes on with the next shape."""


class Backend(Protocol):
    """Runs one kernel at one shape on this rank, and times it."""

    name: str
    ranks: Ranks
    device_label: str
    software: str
    sensor: str
    kinds: frozenset[str]
    dtypes: tuple[str, ...]

    def prepare(self, kind: str, shape: Shape, dtype: str) -> Call:
        """Return a call that runs the kernel once; raises `KernelFailedError` where it cannot."""

    def timed(self, call: Call, count: int) -> float:
        """Return the seconds of `count` calls in a row."""

    def barrier(self) -> None:
        """Wait for all ranks."""

    def agree(self, count: int) -> int:
        """Return the largest `count` of all ranks."""

    def gather(self, value: float) -> list[float]:
        """Return the value of every rank."""

    def close(self) -> None:
        """Leave the group of ranks."""


def storage_call(kind: str, num_bytes: int) -> Call:
    """Return a call that writes to, or reads from, a file of `num_bytes` on the temporary folder's disk."""
    folder = Path(tempfile.gettempdir())
    path = folder / f"meshwright-profile-{os.getpid()}.bin"
    block = os.urandom(min(num_bytes, 1 << 22))

    def write() -> None:
        with path.open("wb") as file:
            for _ in range(max(num_bytes // len(block), 1)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())

    def read() -> None:
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.read(1 << 22):
                pass

    try:
        write()
    except OSError as error:
        message = f"{folder}: {error.strerror}"
        raise KernelFailedError(message) from None
    return write if kind == "nvme_write" else read


def processor_name() -> str:
    """Return the processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class NumpyBackend:
    """Kernels of numpy in this process alone: no gradients, no collectives."""

    name = "numpy"
    sensor = "cpu"
    kinds = frozenset(
        {
            "matmul", "attention_forward", "copy", "elementwise", "norm", "optimizer", "launch", "nvme_write",
            "nvme_read",
        }
    )  # fmt: skip
    dtypes: tuple[str, ...] = ("fp32",)

    def __init__(self, ranks: Ranks) -> None:
        if ranks.num_ranks > 1:
            message = "the numpy back end works in one process; use --backend cpu for several ranks"
            raise InputError(message)
        self.ranks = ranks
        self.device_label = processor_name()
        self.software = f"numpy {np.__version__}, python {platform.python_version()}"

    def prepare(self, kind: str, shape: Shape, dtype: str) -> Call:
        """Return a call that runs the kernel once."""
        maker = getattr(self, f"_{kind}", None)
        try:
            if kind.startswith("nvme"):
                return storage_call(kind, int(shape["num_bytes"]))
            if maker is None:
                message = f"the numpy back end has no {kind}"
                raise KernelFailedError(message)
            call: Call = maker(shape)
            call()
        except MemoryError:
            message = "out of memory"
            raise KernelFailedError(message) from None
        return call

    def timed(self, call: Call, count: int) -> float:
        """Return the seconds of `count` calls."""
        start = perf_counter()
        for _ in range(count):
            call()
        return perf_counter() - start

    def barrier(self) -> None:
        """Do nothing: there is one rank."""

    def agree(self, count: int) -> int:
        """Return `count`."""
        return count

    def gather(self, value: float) -> list[float]:
        """Return the one value."""
        return [value]

    def close(self) -> None:
        """Do nothing."""

    def _matmul(self, shape: Shape) -> Call:
        x, w = _ones(shape["m"], shape["k"]), _ones(shape["n"], shape["k"])
        out = np.empty((x.shape[0], w.shape[0]), np.float32)
        return lambda: np.matmul(x, w.T, out=out)

    def _attention_forward(self, shape: Shape) -> Call:
        pieces = int(shape["batch"] * shape["heads"])
        q = _ones(pieces, shape["q_len"], shape["head_dim"])
        mask = np.triu(np.full((q.shape[1], q.shape[1]), -np.inf, np.float32), 1)

        def call() -> npt.NDArray[np.float32]:
            scores = q @ q.transpose(0, 2, 1) + mask
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            out: npt.NDArray[np.float32] = (scores / scores.sum(-1, keepdims=True)) @ q
            return out

        return call

    def _copy(self, shape: Shape) -> Call:
        source = _ones(shape["num_bytes"] / 8)
        target = np.empty_like(source)
        return lambda: np.copyto(target, source)

    def _elementwise(self, shape: Shape) -> Call:
        x = _ones(shape["num_bytes"] / 12)
        out, y = np.empty_like(x), x.copy()
        return lambda: np.add(x, y, out=out)

    def _norm(self, shape: Shape) -> Call:
        x = _ones(max(shape["num_bytes"] / 8 / 256, 1), 256)

        def call() -> npt.NDArray[np.float32]:
            centred = x - x.mean(-1, keepdims=True)
            out: npt.NDArray[np.float32] = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
            return out

        return call

    def _optimizer(self, shape: Shape) -> Call:
        weight, gradient = _ones(shape["num_params"]), _ones(shape["num_params"])
        first, second = np.zeros_like(weight), np.zeros_like(weight)

        def call() -> None:
            np.multiply(first, 0.9, out=first)
            np.add(first, 0.1 * gradient, out=first)
            np.multiply(second, 0.999, out=second)
            np.add(second, 0.001 * gradient * gradient, out=second)
            np.subtract(weight, 1e-3 * first / (np.sqrt(second) + 1e-8), out=weight)

        return call

    def _launch(self, shape: Shape) -> Call:
        one = _ones(1)
        return lambda: np.add(one, 1.0, out=one)


def _ones(*sizes: float) -> npt.NDArray[np.float32]:
    return np.ones([max(int(s), 1) for s in sizes], np.float32)


def make_backend(name: str, ranks: Ranks, **options: Any) -> Backend:
    """Return the back end of that name on this rank.

    Raises
    ------
    InputError
        if there is none, or what it needs is not installed or not present.
    """
    if name not in BACKENDS:
        message = f"no back end is called {name!r}; accepted: {', '.join(BACKENDS)}"
        raise InputError(message)
    if name == "numpy":
        return NumpyBackend(ranks)
    from planner.profiling.torch_backend import TorchBackend

    return TorchBackend(name, ranks, **options)
