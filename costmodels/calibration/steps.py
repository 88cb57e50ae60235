"""Measured training steps to the coefficients of the reference stack, which `planner.profiling` runs."""

import re
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np

from costmodels.calibration.device import chosen_seconds
from costmodels.graph import ModelGraph
from costmodels.graph_import.transformer import transformer_graph
from costmodels.job import TrainingJob
from costmodels.kernels.fit import errors
from costmodels.kernels.machine import Floats
from costmodels.reference_stack import PRIORS, REFERENCE_STACK
from costmodels.samples import Sample
from costmodels.stacks import Stack, find_stack
from costmodels.strategy import ConfigTable, Strategy
from costmodels.training.evaluate import training_inputs
from costmodels.training.step_inputs import StepInputs
from costmodels.training.step_time import step_parts
from hardware.cluster import Cluster

__all__ = ["fit_steps", "reference_model", "step_table"]

_LEAST = 3
_ON_HOST = ("", "numpy", "cpu")
"""Back ends whose kernels the host runs itself; others launch ahead of a device."""
_SHARED_SIGMA_FRAC = 0.4
"""How much less is doubted of a shared coefficient once a similar device was measured (assumed)."""
_NOISE = 0.04
"""Deviation of the logarithm of a step from what a right model says (assumed)."""


def reference_model(**shape: float) -> ModelGraph:
    """Return the model that the reference step trains, from the numbers of a step sample."""
    return transformer_graph(
        name="reference",
        hidden=int(shape["hidden"]),
        ffn_hidden=int(shape["ffn_hidden"]),
        num_layers=int(shape["num_layers"]),
        num_heads=int(shape["num_heads"]),
        vocab=int(shape["vocab"]),
        max_seq_len=int(shape["seq_len"]),
        tied=False,
        learned_positions=True,
    )


def step_table(sample: Sample) -> tuple[TrainingJob, ConfigTable]:
    """Return job and strategy of a step sample."""
    at = sample.at
    job = TrainingJob(
        model=reference_model(**at),
        seq_len=int(at["seq_len"]),
        global_batch=int(at["global_batch"]),
        precision=sample.dtype,
        stack=REFERENCE_STACK,
    )
    row = Strategy(
        tp=int(at["tp"]), pp=int(at["pp"]), dp=int(at["dp"]), micro_batch=int(at["micro_batch"]), zero=0,
        overlap_dp=False,
    )  # fmt: skip
    return job, ConfigTable.from_strategies([row])


def ranks_per_processor(sample: Sample) -> float:
    """Return how many ranks took turns on a processor, from what the back end said; one on a device each.

    Examples
    --------
    >>> said = "1 threads of 2 processors"
    >>> ranks_per_processor(Sample(kind="launch", shape=(), num_ranks=4, software=said))
    2.0
    """
    found = re.search(r"(\d+) threads of (\d+) processors", sample.software)
    return 1.0 if found is None else max(sample.num_ranks * int(found[1]) / int(found[2]), 1.0)


def fit_steps(
    samples: Sequence[Sample], cluster: Cluster, *, statistic: str, like: Stack | None = None
) -> tuple[Stack | None, dict[str, Any], tuple[str, ...]]:
    """Return the reference stack fitted to measured steps, and its error on models that were held out.

    Call it with the kernels and links of the same samples in force. `like` is the stack of a similar machine:
    what is believed before a step is measured.
    """
    rows = [s for s in samples if s.kind == "step" and s.num_ranks == cluster.num_devices]
    if not rows:
        return like, {}, ()
    base = replace(_believed(ranks_per_processor(rows[0]), like), synchronous=rows[0].backend in _ON_HOST)
    if len(rows) < _LEAST and like is None:
        return base, {}, (f"{len(rows)} step samples: the reference stack keeps assumed overheads",)
    inputs = StepInputs.concatenate(
        [training_inputs(job, cluster, table) for job, table in map(step_table, rows)]
    )
    seconds = chosen_seconds(rows, statistic)
    spread = np.array(
        [
            p.log_sigma * (_SHARED_SIGMA_FRAC if p.shared and like is not None else 1.0)
            for p in PRIORS.values()
        ]
    )
    base = replace(base, evidence=f"fitted to {len(rows)} measured steps")
    stack = _fitted(base, inputs, seconds, spread)
    held = _held_out(base, inputs, seconds, spread, np.array([s.at["hidden"] for s in rows]))
    judged = np.isfinite(held)
    report: dict[str, Any] = {
        "num_samples": len(rows),
        "fitted": errors(step_parts(inputs, stack).total_s, seconds),
    }
    if judged.any():
        report["held_out"] = errors(held[judged], seconds[judged])
    report["changed"] = {name: float(f"{getattr(stack, name):.4g}") for name in PRIORS}
    return stack, report, ()


def _believed(ranks_per_processor: float, like: Stack | None) -> Stack:
    """Return the stack before any step was measured; the host is as much slower as more ranks share it."""
    believed = find_stack(REFERENCE_STACK, fitted=False) if like is None else like
    slower = ranks_per_processor / believed.ranks_per_processor
    host = {n: slower * getattr(believed, n) for n in ("host_s_per_op", "host_s_per_microbatch")}
    return replace(believed, ranks_per_processor=ranks_per_processor, **host)


def _fitted(base: Stack, inputs: StepInputs, seconds: Floats, spread: Floats) -> Stack:
    """Return `base` with the coefficients most likely, given the measured steps and its own as priors.

    `spread` holds the deviation of each coefficient's logarithm.
    """
    from scipy.optimize import least_squares  # slow to import, needed for fitting only

    start = np.log([getattr(base, name) for name in PRIORS])
    most = np.log([prior.most for prior in PRIORS.values()])

    def stack_at(point: Floats) -> Stack:
        return replace(base, **dict(zip(PRIORS, np.exp(point).tolist(), strict=True)))

    def residual(point: Floats) -> Floats:
        misfit = np.log(step_parts(inputs, stack_at(point)).total_s / seconds) / _NOISE
        return np.concatenate([misfit, (point - start) / spread])

    bounds = (-inf, most + 1e-9)
    best = least_squares(residual, np.minimum(start, most - 1e-6), bounds=bounds, loss="soft_l1", f_scale=1.5)
    return stack_at(np.asarray(best.x, dtype=np.float64))


def _held_out(base: Stack, inputs: StepInputs, seconds: Floats, spread: Floats, models: Floats) -> Floats:
    """Return each step predicted by a fit that saw no step of its model; NaN with one model only."""
    out = np.full(len(models), np.nan)
    for model in np.unique(models):
        train, test = np.flatnonzero(models != model), np.flatnonzero(models == model)
        if len(train) >= _LEAST:
            stack = _fitted(base, inputs.take(train), seconds[train], spread)
            out[test] = step_parts(inputs.take(test), stack).total_s
    return out
