"""One rank of a reference step with given weights; writes its gradients for `test_reference_step`."""

import json
import sys
from pathlib import Path

import torch

from planner.profiling.ranks import Ranks, ranks_of
from planner.profiling.reference_step import ReferenceJob, ReferenceStep
from planner.profiling.torch_backend import TorchBackend

PER_LAYER = 12


def part(full: torch.Tensor, place: int, job: ReferenceJob, rank: int) -> torch.Tensor:
    """Return the tensor-parallel part of one of a layer's twelve weights."""
    if place in (2, 3):
        split = full.view(3, job.num_heads, -1, *full.shape[1:]).chunk(job.tp, 1)[rank]
        return split.reshape(-1, *full.shape[1:])
    if place in (4, 10):
        return full.chunk(job.tp, 1)[rank]
    return full.chunk(job.tp, 0)[rank] if place in (8, 9) else full


def parts(full: list[torch.Tensor], step: ReferenceStep) -> list[torch.Tensor]:
    """Return this rank's part of the weights (or gradients) of the whole model."""
    job, rank = step.job, step.tensor_rank
    each = job.num_layers // job.pp
    layers = full[2:-3]
    own = []
    if step.first:
        own += [full[0].chunk(job.tp, 0)[rank], full[1]]
    for layer in range(step.stage * each, (step.stage + 1) * each):
        weights = layers[PER_LAYER * layer : PER_LAYER * (layer + 1)]
        own += [part(w, i, job, rank) for i, w in enumerate(weights)]
    if step.last:
        own += [full[-3], full[-2], full[-1].chunk(job.tp, 0)[rank]]
    return own


def gradients(step: ReferenceStep, weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the gradients of one step from given weights."""
    with torch.no_grad():
        for mine, given in zip(step.weights, weights, strict=True):
            mine.copy_(given)
    step.run()
    return [w.grad.clone() for w in step.weights]


def whole(job: ReferenceJob) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return weights and gradients of the same step on one rank, over all replicas' tokens."""
    single = TorchBackend("cpu", Ranks(), threads=1)
    alone = {n: getattr(job, n) for n in job.__slots__} | {"tp": 1, "pp": 1, "dp": 1}
    step = ReferenceStep(single, ReferenceJob(**alone), torch.float32)
    weights = [w.detach().clone() for w in step.weights]
    tokens = []
    for replica in range(job.dp):
        generator = torch.Generator().manual_seed(1 + replica)
        size = (job.num_micro, job.micro_batch, job.seq_len + 1)
        tokens.append(torch.randint(job.vocab, size, generator=generator))
    step.tokens = torch.cat(tokens)
    return weights, gradients(step, weights)


def main() -> None:
    job = ReferenceJob(**json.loads(sys.argv[1]))
    weights, expected = whole(job)
    step = ReferenceStep(TorchBackend("cpu", ranks_of(), threads=1), job, torch.float32)
    found = gradients(step, parts(weights, step))
    errors = [
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))
        for a, b in zip(found, parts(expected, step), strict=True)
    ]
    Path(sys.argv[2]).with_suffix(f".{step.rank}").write_text(json.dumps(errors), encoding="utf-8")


if __name__ == "__main__":
    main()
