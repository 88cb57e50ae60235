"""Watts and joules per token of a serving engine at a steady batch, fitted from measured runs.

The physics is one decode step: weights that a batch touches over memory bandwidth, or arithmetic over the
peak, whichever is longer. Boosted trees correct throughput and draw; joules per token are draw over
throughput. The public runs that this was judged on state no licence, so no coefficients ship:
`fit_serving_power` makes them from a table of one's own.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from costmodels.power_trees import FreeTrees, fit_free_trees

__all__ = ["ServingPower", "ServingRuns", "fit_serving_power", "serving_features", "serving_step_s"]

Floats = npt.NDArray[np.float64]

_OVERHEAD_S = 4e-3
"""Scheduling and launches of one decode step (assumed; the trees correct it)."""
_OVERLAP = 0.3
"""Share of the shorter of compute and memory time that is not hidden (assumed)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingRuns:
    """Steady serving runs as columns."""

    active_params: Floats
    total_params: Floats
    weight_bytes: Floats
    """Per parameter."""
    batch: Floats
    """Sequences in flight, all devices."""
    num_devices: Floats
    tp: Floats
    ep: Floats
    dp: Floats
    output_tokens: Floats
    """Mean per request."""
    task: Floats
    """Any code of the kind of traffic."""
    moe: Floats
    recurrent: Floats
    """1 where layers keep a state in place of attention."""
    flops_per_s: Floats
    """Rated, dense bf16, one device."""
    memory_bytes_per_s: Floats
    rated_w: Floats

    def take(self, rows: npt.NDArray[np.bool_]) -> "ServingRuns":
        """Return the chosen rows."""
        return ServingRuns(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def serving_step_s(runs: ServingRuns) -> tuple[Floats, Floats]:
    """Return memory time and compute time of one decode step.

    A batch of B touches 1 - (1 - a)^B of the experts, where a is the share of parameters that a token uses.
    """
    active = np.clip(runs.active_params / runs.total_params, 1e-6, 1.0)
    touched = np.where(active < 0.99, 1 - (1 - active) ** np.maximum(runs.batch, 1), 1.0)
    num_bytes = np.maximum(runs.total_params * touched, runs.active_params) * runs.weight_bytes
    speedup = np.where(runs.weight_bytes == 1.0, 2.0, 1.0)
    memory_s = num_bytes / (runs.num_devices * runs.memory_bytes_per_s)
    compute_s = 2 * runs.active_params * runs.batch / (runs.num_devices * runs.flops_per_s * speedup)
    return memory_s, compute_s


def _rate(runs: ServingRuns) -> Floats:
    memory_s, compute_s = serving_step_s(runs)
    step_s = np.maximum(memory_s, compute_s) + _OVERLAP * np.minimum(memory_s, compute_s) + _OVERHEAD_S
    rate: Floats = runs.batch / step_s
    return rate


def serving_features(runs: ServingRuns) -> Floats:
    """Return the features of each run. shape (rows, features)"""
    memory_s, compute_s = serving_step_s(runs)
    share = runs.active_params / runs.total_params
    weights = runs.total_params * runs.weight_bytes / runs.num_devices
    logs = [runs.active_params, runs.total_params, share, runs.batch, runs.batch / runs.num_devices]
    logs += [runs.num_devices, runs.tp, runs.ep, runs.dp, runs.weight_bytes, runs.output_tokens]
    logs += [memory_s, compute_s, compute_s / memory_s, np.maximum(memory_s, compute_s), weights]
    logs += [runs.output_tokens * runs.batch / runs.num_devices, runs.memory_bytes_per_s]
    plain = [runs.moe, runs.recurrent, runs.task]
    return np.stack([*(np.log(c) for c in logs), *plain], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingPower:
    """Fitted draw and throughput."""

    draw: tuple[FreeTrees, ...]
    rate: tuple[FreeTrees, ...]

    def watts_per_device(self, runs: ServingRuns) -> Floats:
        """Return the mean draw of one device. [W]"""
        share = np.mean([t.predict(serving_features(runs)) for t in self.draw], axis=0)
        watts: Floats = runs.rated_w * np.exp(np.minimum(share, 0.0))
        return watts

    def tokens_per_s(self, runs: ServingRuns) -> Floats:
        """Return output tokens per second of all devices."""
        log = np.mean([t.predict(serving_features(runs)) for t in self.rate], axis=0)
        rate: Floats = _rate(runs) * np.exp(log)
        return rate

    def joules_per_token(self, runs: ServingRuns) -> Floats:
        """Return the energy of one output token, all devices. [J]"""
        joules: Floats = self.watts_per_device(runs) * runs.num_devices / self.tokens_per_s(runs)
        return joules


def fit_serving_power(
    runs: ServingRuns, *, watts_per_device: Floats, tokens_per_s: Floats, num_seeds: int = 3
) -> ServingPower:
    """Return draw and throughput fitted to measured runs."""
    features = serving_features(runs)
    draw, rate = np.log(watts_per_device / runs.rated_w), np.log(tokens_per_s / _rate(runs))

    def trees(target: Floats) -> tuple[FreeTrees, ...]:
        return tuple(
            fit_free_trees(
                features,
                target,
                num_trees=300,
                num_leaves=16,
                learning_rate=0.05,
                min_rows_per_leaf=8,
                features_frac=0.3,
                l2=5.0,
                seed=seed,
            )
            for seed in range(num_seeds)
        )

    return ServingPower(draw=trees(draw), rate=trees(rate))
