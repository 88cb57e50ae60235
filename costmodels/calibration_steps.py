"""Measured training steps to the coefficients of the reference stack, which `planner.profiling` runs."""

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from costmodels.calibration import chosen_seconds
from costmodels.graph import ModelGraph
from costmodels.graph_import.transformer import transformer_graph
from costmodels.job import TrainingJob
from costmodels.kernels_fit import errors
from costmodels.kernels_machine import Floats
from costmodels.layer_costs import matmul_dtype
from costmodels.samples import Sample
from costmodels.stack_fit import StackSamples, fit_stacks, predict_stacks
from costmodels.stacks import Stack
from costmodels.step_inputs import StepInputs
from costmodels.strategy import ConfigTable, Strategy
from costmodels.training import training_inputs
from hardware.cluster import Cluster

__all__ = ["REFERENCE_STACK", "fit_steps", "reference_model", "step_table"]

REFERENCE_STACK = "torch-reference"
"""Name of the stack that the generated reference step is."""
_LEAST = 3

_BASE = Stack(
    name=REFERENCE_STACK,
    summary="the reference training step: torch without compilation, gradients reduced after backward",
    flash=True,
    fused_norm=True,
    overlap_gradients=False,
    main_grad_bytes=4.0,
    gemm=1.0,
    vector=1.0,
    comm=1.0,
    dp_comm=1.0,
    misaligned=0.01,
    host_s_per_op=1e-5,
    host_s_per_microbatch=3e-4,
    sync_s_per_collective=1e-5,
    pp_exposed_frac=1.0,
    step_s=1e-3,
    evidence="assumed; calibrated by measured steps",
)


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
    samples: Sequence[Sample], cluster: Cluster, *, statistic: str
) -> tuple[Stack | None, dict[str, Any], tuple[str, ...]]:
    """Return the reference stack fitted to measured steps, and its error on models that were held out.

    Call it with the kernels and links of the same samples in force.
    """
    rows = [s for s in samples if s.kind == "step" and s.num_ranks == cluster.num_devices]
    if len(rows) < _LEAST:
        note = f"{len(rows)} step samples: the reference stack keeps assumed overheads" if rows else ""
        base = replace(_BASE, ranks_per_processor=ranks_per_processor(rows[0])) if rows else None
        return base, {}, ((note,) if note else ())
    inputs = []
    for sample in rows:
        job, table = step_table(sample)
        inputs.append(training_inputs(job, cluster, table))
    seconds = chosen_seconds(rows, statistic)
    key = f"{cluster.device.name}/{matmul_dtype(rows[0].dtype)}"
    known = StackSamples(
        inputs=StepInputs.concatenate(inputs),
        measured_s=seconds,
        stack=np.full(len(rows), REFERENCE_STACK),
        key=np.full(len(rows), key),
        unmeasured=frozenset(),
    )
    every = np.arange(len(rows))
    base = replace(_BASE, ranks_per_processor=ranks_per_processor(rows[0]))
    fitted, _ = fit_stacks({REFERENCE_STACK: base}, known, every)
    models = np.array([s.at["hidden"] for s in rows])
    held = _held_out(base, known, models)
    judged = np.isfinite(held)
    report: dict[str, Any] = {
        "num_samples": len(rows),
        "fitted": errors(_told(fitted, known, every), seconds),
    }
    if judged.any():
        report["held_out"] = errors(held[judged], seconds[judged])
    stack = fitted[REFERENCE_STACK]
    report["changed"] = {
        f.name: float(f"{getattr(stack, f.name):.4g}")
        for f in fields(Stack)
        if isinstance(getattr(_BASE, f.name), float) and getattr(stack, f.name) != getattr(_BASE, f.name)
    }
    return stack, report, ()


def _told(stacks: dict[str, Stack], known: StackSamples, rows: Any) -> Floats:
    return predict_stacks(stacks, {}, known, rows)


def _held_out(base: Stack, known: StackSamples, models: Floats) -> Floats:
    """Return each step predicted by a fit that saw no step of its model; NaN with one model only."""
    out = np.full(len(models), np.nan)
    for model in np.unique(models):
        train, test = np.flatnonzero(models != model), np.flatnonzero(models == model)
        if len(train) >= _LEAST:
            fitted, _ = fit_stacks({REFERENCE_STACK: base}, known, train)
            out[test] = _told(fitted, known, test)
    return out
