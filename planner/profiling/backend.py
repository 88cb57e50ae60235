"""What a back end must do, and what all of them share."""

import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from planner.profiling.ranks import Ranks

__all__ = ["BACKENDS", "Backend", "Call", "KernelFailedError", "Shape", "processor_name", "storage_call"]

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
    on_host: bool
    """Kernels run on the host's processors, which other programs use too."""

    def prepare(self, kind: str, shape: Shape, dtype: str) -> Call:
        """Return a call that runs the kernel once; raises `KernelFailedError` where it cannot."""

    def timed(self, call: Call, count: int) -> float:
        """Return the seconds of `count` calls in a row."""

    def reference_s(self) -> float:
        """Return the seconds that a fixed matmul takes just now."""

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
