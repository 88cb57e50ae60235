"""The loop made automatic: plan, run what tells most, correct, plan again, until more runs are not worth it.

The prediction of every candidate is corrected by what was measured of its likes: a Gaussian process over the
logarithms of the degrees models ``ln(measured / predicted)``. The next run is the candidate whose expected
improvement over the best measured step is largest (Jones et al., Journal of Global Optimization 13, 1998).
"""

import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import erf, exp, inf, isfinite, log, pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.samples import Sample, read_samples
from costmodels.strategy import Strategy
from hardware.errors import InputError, OutOfDomainError
from planner.plan_io import plan_document
from planner.profiling.launch import measure_locally
from planner.profiling.plan_tasks import step_task
from planner.request import TrainRequest, resolve
from planner.training.flow import plan_training

__all__ = ["Candidate", "TuneRequest", "command_runner", "expected_gain", "local_runner", "tune"]

Floats = npt.NDArray[np.float64]
Runner = Callable[[Strategy], float]

_ALL = 10_000
_LIKENESS = 0.75
"""Length, in doublings of a degree, over which two configurations resemble each other (assumed)."""
_PRIOR_SIGMA = 0.25
_NOISE = 0.03
_AXES = ("tp", "pp", "dp", "micro_batch", "zero", "vpp")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRequest:
    """How long to go on."""

    max_runs: int | None = None
    """None: a quarter of the candidates, at least one."""
    min_gain_frac: float = 0.01
    """Stop when the best candidate left is expected to gain less than this share of the best step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One configuration that fits, and what it is predicted to take."""

    strategy: Strategy
    predicted_s: float
    point: tuple[float, ...] = field(default=())


def candidates(request: TrainRequest) -> list[Candidate]:
    """Return every configuration that the request allows and that fits, predicted fastest first."""
    plans = plan_training(replace(request, top=_ALL)).plans
    return [
        Candidate(
            strategy=p.strategy,
            predicted_s=p.predicted.step_s,
            point=tuple(log(max(int(getattr(p.strategy, n)), 1), 2) for n in _AXES),
        )
        for p in plans
    ]


def _belief(known: list[tuple[Candidate, float]], every: list[Candidate]) -> tuple[Floats, Floats]:
    """Return mean and deviation of ln(step) of every candidate, given the measured ones."""
    points = np.array([c.point for c in every])
    prior = np.log([c.predicted_s for c in every])
    if not known:
        return prior, np.full(len(every), _PRIOR_SIGMA)
    at = np.array([c.point for c, _ in known])
    ratio = np.log([s / c.predicted_s for c, s in known])
    level = float(np.median(ratio))
    """What all predictions have in common is no news about which is best."""

    def alike(a: Floats, b: Floats) -> Floats:
        distance = ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)
        out: Floats = _PRIOR_SIGMA**2 * np.exp(-distance / (2.0 * _LIKENESS**2))
        return out

    cross = alike(points, at)
    weights = np.linalg.solve(alike(at, at) + _NOISE**2 * np.eye(len(at)), np.eye(len(at)))
    mean = prior + level + cross @ weights @ (ratio - level)
    variance = _PRIOR_SIGMA**2 - np.einsum("ij,jk,ik->i", cross, weights, cross)
    return mean, np.sqrt(np.maximum(variance, 1e-6))


def expected_gain(best_s: float, mean: float, sigma: float) -> float:
    """Return by which share of `best_s` a candidate is expected to beat it, from its belief in ln seconds.

    Examples
    --------
    >>> round(expected_gain(1.0, 0.0, 1e-9), 6)
    0.0
    >>> expected_gain(1.0, -0.5, 0.1) > 0.39
    True
    """
    z = (log(best_s) - mean) / sigma
    density, below = exp(-z * z / 2.0) / sqrt(2.0 * pi), 0.5 * (1.0 + erf(z / sqrt(2.0)))
    log_gain = sigma * (z * below + density)
    return 1.0 - exp(-log_gain)


def tune(request: TrainRequest, run: Runner, asked: TuneRequest) -> dict[str, Any]:
    """Return what was run, and the best configuration that was measured.

    Raises
    ------
    OutOfDomainError
        if no run gave a time.
    """
    every = candidates(request)
    left = list(range(len(every)))
    limit = asked.max_runs if asked.max_runs is not None else max(len(every) // 4, 1)
    known: list[tuple[Candidate, float]] = []
    runs: list[dict[str, Any]] = []
    failed = ""
    stopped = f"{limit} runs were allowed"
    while left and len(runs) < limit:
        mean, sigma = _belief(known, every)
        best = min((s for _, s in known), default=inf)
        if isfinite(best):
            gains = [expected_gain(best, float(mean[i]), float(sigma[i])) for i in left]
            pick = left[int(np.argmax(gains))]
            if max(gains) < asked.min_gain_frac:
                stopped = f"no candidate is expected to gain {100 * asked.min_gain_frac:g} %"
                break
        else:
            pick = left[int(np.argmin(mean[left]))]
        left.remove(pick)
        one = every[pick]
        try:
            seconds: float | None = run(one.strategy)
        except OutOfDomainError as error:
            seconds, failed = None, str(error)
        if seconds is not None:
            known.append((one, seconds))
        runs.append(
            {
                "strategy": _words(one.strategy),
                "predicted_s": float(np.exp(mean[pick])),
                "measured_s": seconds,
            }
        )
    if not known:
        message = f"none of {len(runs)} runs gave a step time; the last one said: {failed}"
        raise OutOfDomainError(message)
    chosen, seconds = min(known, key=lambda pair: pair[1])
    return {
        "kind": "tuning",
        "num_candidates": len(every),
        "num_runs": len(runs),
        "runs": runs,
        "best": {
            "strategy": _words(chosen.strategy),
            "columns": plan_document(chosen.strategy),
            "measured_s": seconds,
        },
        "stopped": stopped,
    }


def _words(strategy: Strategy) -> str:
    return " ".join(f"{n}={int(getattr(strategy, n))}" for n in ("tp", "pp", "dp", "micro_batch"))


def local_runner(request: TrainRequest, *, samples: Path | None = None, statistic: str = "median") -> Runner:
    """Return a runner that trains the reference step on processes of this machine."""
    job, cluster = resolve(request)

    def run(strategy: Strategy) -> float:
        with tempfile.TemporaryDirectory(prefix="meshwright-") as folder:
            path = samples or Path(folder) / "samples.csv"
            task = step_task(job, strategy)
            measure_locally([task], path, backend="cpu", num_ranks=strategy.world, device=cluster.device.name)
            found: list[Sample] = [s for s in read_samples(path).samples if s.shape == task.shape]
        if not found:
            message = f"{_words(strategy)}: the step failed"
            raise OutOfDomainError(message)
        return found[-1].best_s if statistic == "best" else found[-1].seconds

    return run


def command_runner(template: str, *, timeout_s: float = 3600.0) -> Runner:
    """Return a runner that fills in a command and reads the last number that it prints as seconds.

    Parameters
    ----------
    template : a command with columns of a strategy in braces, such as ``./run.sh {tp} {pp} {dp}``.

    Raises
    ------
    InputError
        if the template names no column, or one that does not exist.
    """
    names = {name: 0 for name in plan_document(Strategy())}
    try:
        template.format(**names)
    except (KeyError, IndexError, ValueError) as error:
        message = f"--command: {error} is no column of a strategy; known: {', '.join(names)}"
        raise InputError(message) from None

    def run(strategy: Strategy) -> float:
        command = template.format(**plan_document(strategy))
        try:
            done = subprocess.run(
                shlex.split(command), capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            message = f"{command}: {error}"
            raise OutOfDomainError(message) from None
        numbers = _NUMBER.findall(done.stdout)
        seconds = float(numbers[-1]) if numbers else float("nan")
        if done.returncode or not isfinite(seconds) or seconds <= 0:
            said = (done.stderr.strip().splitlines() or ["it printed no positive number of seconds"])[-1]
            message = f"{command}: exit code {done.returncode}: {said}"
            raise OutOfDomainError(message)
        return seconds

    return run
