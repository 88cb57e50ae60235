"""A real training step in torch, laid over ranks as a plan says: what a prediction is measured against.

A decoder of pre-norm layers with random weights and tokens, column- and row-split matmuls over `tp` ranks
(Shoeybi et al., arXiv 1909.08053), stages under the 1F1B schedule over `pp` ranks, gradients of `dp` replicas
reduced after the last backward, one fused Adam step. Gradients are real; nothing is skipped.

Ranks are numbered with tensor parallelism innermost, then data, then pipeline parallelism.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from hardware.errors import InputError, OutOfDomainError
from planner.profiling.ranks import Ranks

__all__ = ["ReferenceJob", "ReferenceStep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceJob:
    """What is trained, and how it is cut."""

    hidden: int
    ffn_hidden: int
    num_layers: int
    num_heads: int
    vocab: int
    seq_len: int
    global_batch: int
    tp: int = 1
    pp: int = 1
    dp: int = 1
    micro_batch: int = 1

    def __post_init__(self) -> None:
        pairs = (
            ("hidden", self.num_heads), ("num_heads", self.tp), ("ffn_hidden", self.tp), ("vocab", self.tp),
            ("num_layers", self.pp), ("global_batch", self.dp * self.micro_batch),
        )  # fmt: skip
        for name, divisor in pairs:
            if getattr(self, name) % divisor:
                message = f"the reference step needs {name} ({getattr(self, name)}) to divide by {divisor}"
                raise OutOfDomainError(message)

    @property
    def num_ranks(self) -> int:
        """Ranks that take part."""
        return self.tp * self.pp * self.dp

    @property
    def num_micro(self) -> int:
        """Micro-batches of one replica and step."""
        return self.global_batch // (self.dp * self.micro_batch)

    @classmethod
    def of(cls, shape: Mapping[str, float]) -> "ReferenceJob":
        """Return the job that the shape of a sample describes."""
        return cls(**{f.name: int(shape[f.name]) for f in fields(cls)})


class TorchRank(Protocol):
    """What the step needs of the back end that runs it."""

    name: str
    torch: Any
    device: Any
    ranks: Ranks

    def group_of(self, stride: int, degree: int) -> tuple[Any, list[int]]:
        """Return this rank's group of `degree` ranks that are `stride` apart, and its members."""


class _Split:
    """The two places where a tensor-parallel layer talks: its input's gradient and its output."""

    def __init__(self, torch: Any, group: Any, degree: int) -> None:
        self.degree, self.group, self.distributed = degree, group, torch.distributed

        def reduced(x: Any) -> Any:
            x = x.contiguous()
            torch.distributed.all_reduce(x, group=group)
            return x

        def enter_backward(ctx: Any, gradient: Any) -> Any:
            return reduced(gradient)

        def leave_forward(ctx: Any, x: Any) -> Any:
            return reduced(x.clone())

        base = torch.autograd.Function
        self._enter: Any = type(
            "Enter",
            (base,),
            {"forward": staticmethod(lambda ctx, x: x), "backward": staticmethod(enter_backward)},
        )
        self._leave: Any = type(
            "Leave",
            (base,),
            {"forward": staticmethod(leave_forward), "backward": staticmethod(lambda ctx, g: g)},
        )

    def enter(self, x: Any) -> Any:
        """Return `x`; its gradient is summed over the group."""
        return x if self.degree == 1 else self._enter.apply(x)

    def leave(self, x: Any) -> Any:
        """Return `x` summed over the group."""
        return x if self.degree == 1 else self._leave.apply(x)

    def maximum(self, x: Any) -> Any:
        """Return the largest `x` of the group."""
        if self.degree > 1:
            self.distributed.all_reduce(x, op=self.distributed.ReduceOp.MAX, group=self.group)
        return x


class ReferenceStep:
    """One rank's part of the step; `run` is one whole optimizer step."""

    def __init__(self, backend: TorchRank, job: ReferenceJob, dtype: Any) -> None:
        ranks = backend.ranks
        if job.num_ranks != ranks.num_ranks:
            message = f"the step is laid over {job.num_ranks} ranks, {ranks.num_ranks} run"
            raise InputError(message)
        self.torch, self.job, self.device = backend.torch, job, backend.device
        self.dtype, self.rank = dtype, ranks.rank
        self.stage = ranks.rank // (job.tp * job.dp)
        self.first, self.last = self.stage == 0, self.stage == job.pp - 1
        tensor = backend.group_of(1, job.tp)[0] if job.tp > 1 else None
        self.replicas = backend.group_of(job.tp, job.dp)[0] if job.dp > 1 else None
        self.split = _Split(self.torch, tensor, job.tp)
        self.tensor_rank = ranks.rank % job.tp
        self._parameters(backend)
        self.sent: list[Any] = []
        generator = self.torch.Generator().manual_seed(1 + ranks.rank // job.tp % job.dp)
        size = (job.num_micro, job.micro_batch, job.seq_len + 1)
        self.tokens = self.torch.randint(job.vocab, size, generator=generator).to(self.device)

    def _shapes(self) -> list[tuple[int, ...]]:
        job, h = self.job, self.job.hidden
        up, wide = job.ffn_hidden // job.tp, h // job.tp
        layer = [
            (h,), (h,), (3 * wide, h), (3 * wide,), (h, wide), (h,),
            (h,), (h,), (up, h), (up,), (h, up), (h,),
        ]  # fmt: skip
        shapes: list[tuple[int, ...]] = []
        if self.first:
            shapes += [(job.vocab // job.tp, h), (job.seq_len, h)]
        shapes += layer * (job.num_layers // job.pp)
        if self.last:
            shapes += [(h,), (h,), (job.vocab // job.tp, h)]
        return shapes

    def _parameters(self, backend: TorchRank) -> None:
        """Lay all weights, and all gradients, into one buffer each, as frameworks do."""
        torch, shapes = self.torch, self._shapes()
        sizes = [int(torch.Size(s).numel()) for s in shapes]
        generator = torch.Generator().manual_seed(7 + self.rank)
        weights = 0.02 * torch.randn(sum(sizes), generator=generator)
        self.flat = weights.to(self.device, self.dtype)
        self.gradients = torch.zeros_like(self.flat)
        self.weights = []
        for shape, weight, gradient in zip(
            shapes, self.flat.split(sizes), self.gradients.split(sizes), strict=True
        ):
            leaf = weight.view(shape).requires_grad_()
            leaf.grad = gradient.view(shape)
            self.weights.append(leaf)
        owner = torch.nn.Parameter(self.flat.detach())
        owner.grad = self.gradients
        self.optimizer = torch.optim.Adam([owner], lr=1e-5, fused=backend.name != "npu")

    def _layer(self, x: Any, w: list[Any]) -> Any:
        nn, job = self.torch.nn.functional, self.job
        batch, length, h = x.shape
        normed = self.split.enter(nn.layer_norm(x, (h,), w[0], w[1]))
        qkv = nn.linear(normed, w[2], w[3]).view(batch, length, 3, job.num_heads // job.tp, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.scaled_dot_product_attention(q, k, v, is_causal=True)
        joined = attended.transpose(1, 2).reshape(batch, length, -1)
        x = x + self.split.leave(nn.linear(joined, w[4])) + w[5]
        normed = self.split.enter(nn.layer_norm(x, (h,), w[6], w[7]))
        return x + self.split.leave(nn.linear(nn.gelu(nn.linear(normed, w[8], w[9])), w[10])) + w[11]

    def _embed(self, tokens: Any, w: list[Any]) -> Any:
        rows = self.job.vocab // self.job.tp
        local = tokens - self.tensor_rank * rows
        outside = (local < 0) | (local >= rows)
        found = self.torch.nn.functional.embedding(local.clamp(0, rows - 1), w[0])
        found = found.masked_fill(outside.unsqueeze(-1), 0.0)
        return self.split.leave(found) + w[1]

    def _loss(self, x: Any, targets: Any, w: list[Any]) -> Any:
        nn = self.torch.nn.functional
        normed = self.split.enter(nn.layer_norm(x, (x.shape[-1],), w[0], w[1]))
        logits = nn.linear(normed, w[2]).float().flatten(0, 1)
        if self.job.tp == 1:
            return nn.cross_entropy(logits, targets.flatten())
        top = self.split.maximum(logits.detach().max(-1).values)
        shifted = logits - top.unsqueeze(-1)
        total = self.split.leave(shifted.exp().sum(-1))
        rows = logits.shape[-1]
        local = targets.flatten() - self.tensor_rank * rows
        outside = (local < 0) | (local >= rows)
        own = shifted.gather(-1, local.clamp(0, rows - 1).unsqueeze(-1)).squeeze(-1)
        return (total.log() - self.split.leave(own.masked_fill(outside, 0.0))).mean()

    def _forward(self, index: int) -> tuple[Any, Any]:
        """Return what came in and what goes out (the loss, on the last stage) of one micro-batch."""
        job, w = self.job, self.weights
        received = None
        if self.first:
            x = self._embed(self.tokens[index, :, :-1], w[:2])
            w = w[2:]
        else:
            received = self._receive(-1).requires_grad_()
            x = received
        for layer in range(job.num_layers // job.pp):
            x = self._layer(x, w[12 * layer : 12 * layer + 12])
        if self.last:
            x = self._loss(x, self.tokens[index, :, 1:], w[-3:]) / job.num_micro
        else:
            self._send(x.detach(), +1)
        return received, x

    def _backward(self, received: Any, out: Any) -> None:
        if self.last:
            out.backward()
        else:
            out.backward(self._receive(+1))
        if received is not None:
            self._send(received.grad, -1)

    def _neighbour(self, step: int) -> int:
        return self.rank + step * self.job.tp * self.job.dp

    def _send(self, x: Any, step: int) -> None:
        x = x.contiguous()
        self.sent.append((x, self.torch.distributed.isend(x, self._neighbour(step))))

    def _receive(self, step: int) -> Any:
        job = self.job
        x = self.torch.empty((job.micro_batch, job.seq_len, job.hidden), device=self.device, dtype=self.dtype)
        self.torch.distributed.recv(x, self._neighbour(step))
        return x

    def run(self) -> None:
        """Run one optimizer step: 1F1B, gradient reduction, Adam."""
        job, waiting = self.job, []
        self.gradients.zero_()
        ahead = min(job.pp - self.stage - 1, job.num_micro)
        for index in range(job.num_micro):
            waiting.append(self._forward(index))
            if index >= ahead:
                self._backward(*waiting.pop(0))
        for held in waiting:
            self._backward(*held)
        for _, request in self.sent:
            request.wait()
        self.sent.clear()
        if self.replicas is not None:
            self.torch.distributed.all_reduce(self.gradients, group=self.replicas)
            self.gradients.div_(job.dp)
        self.optimizer.step()

    def loss(self) -> float:
        """Return the mean loss of this rank's tokens; on one stage only."""
        with self.torch.no_grad():
            losses = [float(self._forward(i)[1]) for i in range(self.job.num_micro)]
        return sum(losses)
