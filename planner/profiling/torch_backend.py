"""The torch back end: CPU with gloo, CUDA with NCCL, ROCm with RCCL and Ascend with HCCL, through one code.

torch names ROCm devices ``cuda``; Ascend needs the package torch_npu, which adds ``torch.npu``.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from itertools import cycle
from math import ceil
from time import perf_counter
from typing import Any

from hardware.errors import InputError
from planner.profiling.backend import Call, KernelFailedError, processor_name, storage_call
from planner.profiling.ranks import Ranks
from planner.profiling.reference_step import ReferenceJob, ReferenceStep

__all__ = ["TorchBackend", "import_torch"]

_GROUP_BACKENDS = {"cpu": "gloo", "cuda": "nccl", "rocm": "nccl", "npu": "hccl"}
_TIMEOUT = timedelta(seconds=120)
"""A rank that says nothing for so long is taken for dead."""
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_OPTIMIZER_PARTS = 8
"""Tensors among which the optimizer's parameters are spread."""


_ROTATED_BYTES = 2**25
_ROTATED_BYTES_LARGE = 2**28
_MOST_ROTATED = 64
"""Matmuls take turns on operands of so many bytes together, more than caches near a core or of a GPU keep: in
a step, weights come from memory every time (on one core of a Zen 4, 1.15 times as slow at 192 rows, 1.5 at
32)."""
_REFERENCE_SIDE = 256
_REFERENCE_SIDE_LARGE = 4096
"""Of the square matmul that tells whether the machine is as fast as at its best."""


def run_in_turns() -> None:
    """Let threads of this process wait for their turn instead of interrupting each other, where they may.

    gloo's event thread spins while another thread of its process holds the lock of a connection. Where both
    share a processor, a wake-up that interrupts the holder costs the rest of a scheduler tick, 4 ms with
    Linux's usual 250 per second: several times the collective itself. Its batch class has no such wake-ups.
    """
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def import_torch() -> Any:
    """Return torch.

    Raises
    ------
    InputError
        if it is not installed.
    """
    try:
        return import_module("torch")
    except ImportError:
        message = (
            "this needs torch, which is not installed: install meshwright[torch], or use --backend numpy"
        )
        raise InputError(message) from None


class TorchBackend:
    """Kernels and collectives of torch on one kind of device."""

    def __init__(self, name: str, ranks: Ranks, *, threads: int | None = None) -> None:
        self.torch = torch = import_torch()
        self.name, self.ranks, self.sensor = name, ranks, name
        self.module: Any = None
        if name == "cpu":
            run_in_turns()
            torch.set_num_threads(threads or max((os.cpu_count() or 1) // max(ranks.num_ranks, 1), 1))
            self.device = torch.device("cpu")
            self.device_label = processor_name()
        else:
            self.module = self._accelerator(name)
            index = ranks.local_rank % self.module.device_count()
            self.module.set_device(index)
            self.device = torch.device("cuda" if name == "rocm" else name, index)
            self.device_label = str(self.module.get_device_name(index))
        self.software = self._software()
        self.dtypes: tuple[str, ...] = ("fp32",) if name == "cpu" else ("bf16", "fp32")
        kinds = set(self._makers()) | {"nvme_write", "nvme_read"}
        self.kinds = frozenset(kinds if ranks.num_ranks > 1 else kinds - set(_COLLECTIVES))
        self.on_host = name == "cpu"
        self.groups: dict[tuple[int, int], Any] = {}
        self._reference = self._reference_call(getattr(torch, _DTYPES[self.dtypes[0]]))
        if ranks.num_ranks > 1:
            self._join()

    def _accelerator(self, name: str) -> Any:
        if name == "npu":
            try:
                import_module("torch_npu")
            except ImportError:
                message = "the npu back end needs torch_npu, which is not installed"
                raise InputError(message) from None
        module = getattr(self.torch, "npu" if name == "npu" else "cuda")
        if not module.is_available():
            message = f"no {name} device is present"
            raise InputError(message)
        is_rocm = getattr(self.torch.version, "hip", None) is not None
        if name in ("cuda", "rocm") and is_rocm != (name == "rocm"):
            message = f"this torch is built for {'ROCm' if is_rocm else 'CUDA'}; use that back end"
            raise InputError(message)
        return module

    def _software(self) -> str:
        parts = [f"torch {self.torch.__version__}"]
        version = self.torch.version
        for label, value in (("cuda", version.cuda), ("hip", getattr(version, "hip", None))):
            if value and self.name != "cpu":
                parts.append(f"{label} {value}")
        if self.name == "cpu":
            parts.append(f"{self.torch.get_num_threads()} threads of {os.cpu_count()} processors")
        return ", ".join(parts)

    def _join(self) -> None:
        os.environ.setdefault("MASTER_ADDR", self.ranks.meeting)
        os.environ.setdefault("MASTER_PORT", "29511")
        self.torch.distributed.init_process_group(
            _GROUP_BACKENDS[self.name],
            rank=self.ranks.rank,
            world_size=self.ranks.num_ranks,
            timeout=_TIMEOUT,
        )

    def timed(self, call: Call, count: int) -> float:
        """Return the seconds of `count` calls: device events where there is a device, else the clock."""
        if self.module is None:
            start = perf_counter()
            for _ in range(count):
                call()
            return perf_counter() - start
        begin, end = (self.module.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            call()
        end.record()
        self.module.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3

    def _reference_call(self, dtype: Any) -> Call:
        side = _REFERENCE_SIDE if self.on_host else _REFERENCE_SIDE_LARGE
        x, w = (self._random(side, side, dtype=dtype) for _ in range(2))
        return lambda: self.torch.mm(x, w)

    def reference_s(self) -> float:
        """Return the seconds of a fixed matmul."""
        return self.timed(self._reference, 1)

    def barrier(self) -> None:
        """Wait for all ranks, and for the device."""
        if self.module is not None:
            self.module.synchronize()
        if self.ranks.num_ranks > 1:
            self.torch.distributed.barrier()

    def gather(self, value: float) -> list[float]:
        """Return the value of every rank."""
        if self.ranks.num_ranks == 1:
            return [value]
        # HCCL reduces no 64-bit floats; counts stay far below 2**24 and times need no more digits.
        own = self.torch.tensor([value], dtype=self.torch.float32, device=self.device)
        every = [self.torch.empty_like(own) for _ in range(self.ranks.num_ranks)]
        self.torch.distributed.all_gather(every, own)
        return [float(v) for v in every]

    def agree(self, count: int) -> int:
        """Return the largest `count` of all ranks."""
        return int(max(self.gather(float(count))))

    def close(self) -> None:
        """Leave the group of ranks."""
        if self.ranks.num_ranks > 1 and self.torch.distributed.is_initialized():
            self.barrier()
            self.torch.distributed.destroy_process_group()

    def prepare(self, kind: str, shape: Mapping[str, float], dtype: str) -> Call:
        """Return a call that runs the kernel once, after it ran once.

        Raises
        ------
        KernelFailedError
            if it runs out of memory or the device has no such kernel. All ranks fail together.
        """
        if kind.startswith("nvme"):
            return storage_call(kind, int(shape["num_bytes"]))
        call, why = None, ""
        try:
            call = self._makers()[kind](shape, getattr(self.torch, _DTYPES[dtype]), _BYTES[dtype])
            call()
        except (self.torch.OutOfMemoryError, MemoryError):
            why = "out of memory"
        except (RuntimeError, NotImplementedError) as error:
            text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            why = "out of memory" if "allocate memory" in str(error) else text[:200]
        if max(self.gather(1.0 if why else 0.0)) or call is None:
            if self.module is not None:
                self.module.empty_cache()
            raise KernelFailedError(why or "failed on another rank")
        return call

    def _makers(self) -> dict[str, Callable[..., Call]]:
        return {
            "matmul": self._matmul,
            "attention_forward": self._attention_forward,
            "attention_backward": self._attention_backward,
            "copy": self._copy,
            "elementwise": self._elementwise,
            "norm": self._norm,
            "optimizer": self._optimizer,
            "launch": self._launch,
            "host_to_device": lambda s, d, b: self._transfer(s, to_device=True),
            "device_to_host": lambda s, d, b: self._transfer(s, to_device=False),
            "step": self._step,
            **{op: self._collective_maker(op) for op in _COLLECTIVES},
        }

    def _random(self, *sizes: float, dtype: Any) -> Any:
        whole = [max(int(s), 1) for s in sizes]
        return self.torch.randn(whole, device=self.device, dtype=self.torch.float32).to(dtype)

    def _matmul(self, s: Mapping[str, float], dtype: Any, size: int) -> Call:
        each = (s["m"] + s["n"]) * s["k"] * size
        rotated = _ROTATED_BYTES if self.on_host else _ROTATED_BYTES_LARGE
        x, w = self._random(s["m"], s["k"], dtype=dtype), self._random(s["n"], s["k"], dtype=dtype)
        pairs = [(x.clone(), w.clone()) for _ in range(min(ceil(rotated / each), _MOST_ROTATED))]
        linear, turn = self.torch.nn.functional.linear, cycle(pairs)
        return lambda: linear(*next(turn))

    def _heads(self, s: Mapping[str, float], dtype: Any) -> tuple[Any, Any, Any]:
        q = self._random(s["batch"], s["heads"], s["q_len"], s["head_dim"], dtype=dtype)
        k, v = (
            self._random(s["batch"], s["kv_heads"], s["q_len"], s["head_dim"], dtype=dtype) for _ in range(2)
        )
        return q, k, v

    def _attention_forward(self, s: Mapping[str, float], dtype: Any, size: int) -> Call:
        q, k, v = self._heads(s, dtype)
        attend = self.torch.nn.functional.scaled_dot_product_attention
        return lambda: attend(q, k, v, is_causal=True, enable_gqa=s["heads"] != s["kv_heads"])

    def _attention_backward(self, s: Mapping[str, float], dtype: Any, size: int) -> Call:
        q, k, v = (t.requires_grad_() for t in self._heads(s, dtype))
        attend = self.torch.nn.functional.scaled_dot_product_attention
        out = attend(q, k, v, is_causal=True, enable_gqa=s["heads"] != s["kv_heads"])
        seed = self.torch.ones_like(out)
        return lambda: self.torch.autograd.grad(out, (q, k, v), seed, retain_graph=True)

    def _copy(self, s: Mapping[str, float], dtype: Any, size: int) -> Call:
        source = self._random(s["num_bytes"] / 2 / size, dtype=dtype)
        target = self.torch.empty_like(source)
        return lambda: target.copy_(source)

    def _elementwise(self, s: Mapping[str, float], dtype: Any, size: int) -> Call:
        x = self._random(s["num_bytes"] / 3 / size, dtype=dtype)
        y, out = self.torch.empty_like(x).fill_(1.0), self.torch.empty_like(x)
        return lambda: self.torch.add(x, y, out=out)

    def _norm(self, s: Mapping[str, float], dtype: Any, size: int) -> Call:
        width = int(s.get("width", 512))
        x = self._random(s["num_bytes"] / 2 / size / width, width, dtype=dtype)
        weight = self._random(width, dtype=dtype)
        return lambda: self.torch.nn.functional.layer_norm(x, (width,), weight, weight)

    def _optimizer(self, s: Mapping[str, float], dtype: Any, size: int) -> Call:
        each = s["num_params"] / _OPTIMIZER_PARTS
        weights = [
            self._random(each, dtype=self.torch.float32).requires_grad_() for _ in range(_OPTIMIZER_PARTS)
        ]
        for weight in weights:
            weight.grad = self.torch.ones_like(weight)
        step = self.torch.optim.Adam(weights, lr=1e-6, fused=self.name != "npu").step
        return lambda: step()

    def _launch(self, s: Mapping[str, float], dtype: Any, size: int) -> Call:
        one = self._random(1, dtype=dtype)
        return lambda: one.add_(1.0)

    def _transfer(self, s: Mapping[str, float], *, to_device: bool) -> Call:
        count = int(s["num_bytes"] / 4)
        host = self.torch.ones(count, pin_memory=self.module is not None)
        here = self.torch.ones(count, device=self.device)
        return (lambda: here.copy_(host)) if to_device else (lambda: host.copy_(here))

    def _step(self, s: Mapping[str, float], dtype: Any, size: int) -> Call:
        return ReferenceStep(self, ReferenceJob.of(s), dtype).run

    def group_of(self, stride: int, degree: int) -> tuple[Any, list[int]]:
        """Return this rank's group of `degree` ranks that are `stride` apart; all ranks ask together."""
        span = stride * degree
        members: list[list[int]] = [
            [base + offset + stride * i for i in range(degree)]
            for base in range(0, self.ranks.num_ranks, span)
            for offset in range(stride)
        ]
        own = next(m for m in members if self.ranks.rank in m)
        if (stride, degree) not in self.groups:
            made = {tuple(m): self.torch.distributed.new_group(m) for m in members}
            self.groups[stride, degree] = made[tuple(own)]
        return self.groups[stride, degree], own

    def _collective_maker(self, op: str) -> Callable[..., Call]:
        return lambda shape, dtype, size: _COLLECTIVES[op](self, shape, dtype, size)


def _buffer(b: TorchBackend, s: Mapping[str, float], dtype: Any, size: int) -> tuple[Any, Any, Any, int]:
    degree = int(s["degree"])
    group, members = b.group_of(int(s["stride"]), degree)
    count = max(int(s["message_bytes"] / size / degree), 1) * degree
    return group, members, b.torch.ones(count, dtype=dtype, device=b.device), degree


def _all_reduce(b: TorchBackend, s: Mapping[str, float], dtype: Any, size: int) -> Call:
    group, _, whole, _ = _buffer(b, s, dtype, size)
    return lambda: b.torch.distributed.all_reduce(whole, group=group)


def _all_gather(b: TorchBackend, s: Mapping[str, float], dtype: Any, size: int) -> Call:
    group, _, whole, degree = _buffer(b, s, dtype, size)
    part = whole[: whole.numel() // degree].clone()
    return lambda: b.torch.distributed.all_gather_into_tensor(whole, part, group=group)


def _reduce_scatter(b: TorchBackend, s: Mapping[str, float], dtype: Any, size: int) -> Call:
    group, _, whole, degree = _buffer(b, s, dtype, size)
    part = whole[: whole.numel() // degree].clone()
    return lambda: b.torch.distributed.reduce_scatter_tensor(part, whole, group=group)


def _all_to_all(b: TorchBackend, s: Mapping[str, float], dtype: Any, size: int) -> Call:
    group, _, whole, _ = _buffer(b, s, dtype, size)
    out = b.torch.empty_like(whole)
    return lambda: b.torch.distributed.all_to_all_single(out, whole, group=group)


def _broadcast(b: TorchBackend, s: Mapping[str, float], dtype: Any, size: int) -> Call:
    group, members, whole, _ = _buffer(b, s, dtype, size)
    return lambda: b.torch.distributed.broadcast(whole, src=members[0], group=group)


def _p2p(b: TorchBackend, s: Mapping[str, float], dtype: Any, size: int) -> Call:
    """One send there and one back: `planner.profiling.run` halves the time."""
    _, members, whole, _ = _buffer(b, s, dtype, size)
    mine, peer = members.index(b.ranks.rank), members[(members.index(b.ranks.rank) + 1) % 2]

    def call() -> None:
        for sender in (0, 1):
            if mine == sender:
                b.torch.distributed.send(whole, peer)
            else:
                b.torch.distributed.recv(whole, peer)

    return call


_COLLECTIVES: dict[str, Callable[..., Call]] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "broadcast": _broadcast,
    "p2p": _p2p,
}
