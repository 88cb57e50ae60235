"""The back end that any machine has: numpy, one process."""

import platform
from time import perf_counter

import numpy as np
import numpy.typing as npt

from hardware.errors import InputError
from planner.profiling.backend import Call, KernelFailedError, Shape, processor_name, storage_call
from planner.profiling.ranks import Ranks

__all__ = ["NumpyBackend"]


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
    on_host = True

    def __init__(self, ranks: Ranks) -> None:
        if ranks.num_ranks > 1:
            message = "the numpy back end works in one process; use --backend cpu for several ranks"
            raise InputError(message)
        self.ranks = ranks
        self.device_label = processor_name()
        self._reference = self._matmul({"m": 256, "n": 256, "k": 256})
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

    def reference_s(self) -> float:
        """Return the seconds of a fixed matmul."""
        return self.timed(self._reference, 1)

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
