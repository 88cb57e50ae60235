"""Fit software stacks to measured runs: few coefficients each, shrunk towards what all stacks share.

Log residuals under a robust loss, plus a Gaussian prior on the logarithm of every coefficient. A first pass
fits
each stack alone; the second pulls coefficients towards the mean of the stack's family and factors per
device and
number format towards their mean over all stacks, so a stack with few runs borrows from the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from costmodels.stacks import FITTED, Stack, device_factor
from costmodels.training.step_inputs import StepInputs
from costmodels.training.step_time import StepParts, step_parts

__all__ = ["StackSamples", "family", "fit_stacks", "predict_stacks", "stack_parts"]

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

_NOISE = 0.05
"""Spread of repeated runs of one configuration across minor versions (median 5.5 %)."""
_EXPERT_NOISE = 0.15
"""The same with routed experts, whose kernels and dispatchers change most: up to 60 % between releases."""
_PRIOR_SIGMA = {
    "gemm": 0.04,
    "attention": 0.4,
    "vector": 0.3,
    "comm": 0.25,
    "dp_comm": 0.5,
    "misaligned": 1.5,
    "experts": 0.4,
    "ep_comm": 0.7,
    "host_s_per_op": 1.0,
    "host_s_per_microbatch": 0.7,
    "sync_s_per_collective": 1.5,
    "tp_exposed_frac": 0.5,
    "pp_exposed_frac": 0.7,
    "dp_exposed_frac": 0.7,
    "step_s": 0.7,
}
"""Standard deviation of each coefficient's logarithm around its prior mean (assumed)."""
_BOUNDS = {
    "gemm": (0.95, 2.0),
    "attention": (0.6, 4.0),
    "vector": (0.5, 4.0),
    "comm": (0.85, 4.0),
    "dp_comm": (0.6, 4.0),
    "experts": (0.7, 4.0),
    "ep_comm": (0.2, 4.0),
    "host_s_per_microbatch": (1e-5, 5e-3),
    "step_s": (1e-4, 0.1),
}
"""What is physically sensible: no stack beats isolated kernels and collectives by much; hiding is another
coefficient."""
_ADJUST_SIGMA = 0.15
_UNMEASURED_ADJUST_SIGMA = 0.4
"""For devices of whose dies no kernel was measured, so their matmul time is less certain."""
_REFERENCE_KEY = "a100-80gb/bf16"
_REFERENCE_SIGMA = 0.02
"""Factors per device are relative to this device and format, so its own stays at one."""
_FAMILY_SIGMA_SCALE = 0.7
_ASSUMED_RUNS = 20
"""Runs that a family's assumed values weigh as when its members are averaged."""
_SHARED = ("host_s_per_op", "host_s_per_microbatch", "sync_s_per_collective", "dp_comm", "dp_exposed_frac")
"""What hosts and networks do to any framework; kernel factors are each implementation's own affair."""
_SHIFT_WEIGHT = 5.0
"""Weight of no shift at all, in square roots of runs (assumed)."""
_SHIFT_MOST = 10.0
"""Most that one family weighs, in square roots of runs (assumed)."""
_REACH = 5.0
_LEAST = 1e-7
"""Stands for a coefficient of zero on the log axis."""


@dataclass(frozen=True, slots=True, eq=False)
class StackSamples:
    """Measured runs as inputs of the step model. All columns have one entry per run."""

    inputs: StepInputs
    measured_s: Floats
    stack: npt.NDArray[np.str_]
    key: npt.NDArray[np.str_]
    """``device/format`` of each run."""
    unmeasured: frozenset[str]
    """Keys of devices without kernel measurements of their own dies."""


@dataclass(frozen=True, slots=True)
class _Prior:
    mean: Mapping[str, float]
    """Prior mean of each coefficient (its value, not its logarithm)."""
    adjust: Mapping[str, float]
    scale: float


def family(name: str) -> str:
    """Return the family whose members resemble each other: the name before its version."""
    head, _, tail = name.rpartition("-")
    return head if tail[:1].isdigit() and head else name


def _adjust_sigma(key: str, samples: StackSamples) -> float:
    if key == _REFERENCE_KEY:
        return _REFERENCE_SIGMA
    return _UNMEASURED_ADJUST_SIGMA if key in samples.unmeasured else _ADJUST_SIGMA


def _fit_one(base: Stack, samples: StackSamples, rows: Index, prior: _Prior) -> Stack:
    """Return `base` with the coefficients that fit the runs `rows` best."""
    from scipy.optimize import least_squares  # slow to import, needed for fitting only

    keys = sorted(set(samples.key[rows]))
    parts = [rows[samples.key[rows] == k] for k in keys]
    tables = [(samples.inputs.take(p), np.log(samples.measured_s[p])) for p in parts]
    noises = [np.where(inputs.layer.expert_fwd_s > 0, _EXPERT_NOISE, _NOISE) for inputs, _ in tables]
    start = np.log([max(prior.mean[n], _LEAST) for n in FITTED])
    spread = prior.scale * np.array([_PRIOR_SIGMA[n] for n in FITTED])
    shift = np.log([device_factor(prior.adjust, k) for k in keys])
    adjust_spread = prior.scale * np.array([_adjust_sigma(k, samples) for k in keys])

    def stack_at(point: Floats) -> Stack:
        return base.with_fitted(dict(zip(FITTED, np.exp(point[: len(FITTED)]).tolist(), strict=True)))

    def residual(point: Floats) -> Floats:
        stack = stack_at(point)
        pieces = []
        factors = np.exp(point[len(FITTED) :])
        for key, factor, (inputs, target), noise in zip(keys, factors, tables, noises, strict=True):
            on_device = replace(stack, adjust=((key, float(factor)),)).on(*key.split("/"))
            pieces.append((np.log(step_parts(inputs, on_device).total_s) - target) / noise)
        pieces.append((point[: len(FITTED)] - start) / spread)
        pieces.append((point[len(FITTED) :] - shift) / adjust_spread)
        return np.concatenate(pieces)

    origin = np.concatenate([start, shift])
    lower, upper = origin - _REACH, origin + _REACH
    for i, name in enumerate(FITTED):
        if name.endswith("_frac"):
            upper[i] = max(0.0, origin[i]) + 1e-6
        if name in _BOUNDS:
            lower[i], upper[i] = np.log(_BOUNDS[name])
    if _REFERENCE_KEY not in keys:
        # Only the product of the matmul factor and the device's own shows; the first stays as believed.
        gemm = FITTED.index("gemm")
        lower[gemm], upper[gemm] = start[gemm] - 1e-3, start[gemm] + 1e-3
    origin = np.clip(origin, lower + 1e-6, upper - 1e-6)
    answer = least_squares(residual, origin, bounds=(lower, upper), loss="soft_l1", f_scale=1.5)
    factors = np.exp(answer.x[len(FITTED) :]).tolist()
    return replace(stack_at(answer.x), adjust=tuple(zip(keys, factors, strict=True)))


def _pooled(
    fitted: Mapping[str, Stack], bases: Mapping[str, Stack], counts: Mapping[str, int]
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Return mean coefficients by family and mean device factors over all stacks (geometric, by run
    count).
    """
    groups: dict[str, list[Stack]] = {}
    for stack in fitted.values():
        groups.setdefault(family(stack.name), []).append(stack)
    means = {}
    for name, members in groups.items():
        weight = np.sqrt([_ASSUMED_RUNS, *(counts[m.name] for m in members)])
        believed = bases[members[0].name]
        logs = {n: np.log([max(getattr(m, n), 1e-9) for m in (believed, *members)]) for n in FITTED}
        means[name] = {n: float(np.exp(np.average(v, weights=weight))) for n, v in logs.items()}
    factors: dict[str, list[tuple[float, float]]] = {}
    for stack in fitted.values():
        for key, factor in stack.adjust:
            factors.setdefault(key, []).append((np.log(factor), float(np.sqrt(counts[stack.name]))))
    adjust = {
        key: float(np.exp(sum(v * w for v, w in pairs) / (sum(w for _, w in pairs) + 1.0)))
        for key, pairs in factors.items()
    }
    return means, adjust


def fit_stacks(
    bases: Mapping[str, Stack], samples: StackSamples, rows: Index
) -> tuple[dict[str, Stack], dict[str, float]]:
    """Return all stacks, fitted where they have runs among `rows`, and the pooled factors per device and
    format.

    A stack without runs moves from what is assumed of it as far as the measured families moved on average.
    """
    names = sorted(set(samples.stack[rows]))
    members = {n: rows[samples.stack[rows] == n] for n in names}
    counts = {n: len(m) for n, m in members.items()}
    first = {}
    for name in names:
        mean = {n: float(getattr(bases[name], n)) for n in FITTED}
        first[name] = _fit_one(bases[name], samples, members[name], _Prior(mean, {}, 1.0))
    shift = _shift(first, bases, counts)
    bases = {n: _shifted(b, shift) for n, b in bases.items()}
    means, adjust = _pooled(first, bases, counts)
    shared = {n: sum(family(m) == family(n) for m in names) > 1 for n in names}
    second = {}
    for name in names:
        own = {n: float(getattr(bases[name], n)) for n in FITTED}
        prior = _Prior(
            means[family(name)] if shared[name] else own, adjust, _FAMILY_SIGMA_SCALE if shared[name] else 1.0
        )
        second[name] = _fit_one(bases[name], samples, members[name], prior)
    return {**bases, **second}, adjust


def _shift(
    fitted: Mapping[str, Stack], bases: Mapping[str, Stack], counts: Mapping[str, int]
) -> dict[str, float]:
    """Return by which factor the shared coefficients moved from what was assumed, over all families, shrunk
    to one.
    """
    families = sorted({family(n) for n in fitted})
    members = {f: [n for n in fitted if family(n) == f] for f in families}
    weights = [min(float(np.sqrt(sum(counts[n] for n in members[f]))), _SHIFT_MOST) for f in families]
    shift = {}
    for coefficient in _SHARED:
        total = 0.0
        for name, weight in zip(families, weights, strict=True):
            moved = [
                np.log(
                    max(getattr(fitted[m], coefficient), _LEAST) / max(getattr(bases[m], coefficient), _LEAST)
                )
                for m in members[name]
            ]
            total += weight * float(np.average(moved, weights=[counts[m] for m in members[name]]))
        shift[coefficient] = float(np.exp(total / (sum(weights) + _SHIFT_WEIGHT)))
    return shift


def _shifted(base: Stack, shift: Mapping[str, float]) -> Stack:
    moved = {n: getattr(base, n) * factor for n, factor in shift.items()}
    return base.with_fitted({n: min(v, 1.0) if n.endswith("_frac") else v for n, v in moved.items()})


def _on_device(stack: Stack, pooled: Mapping[str, float], key: str) -> Stack:
    """Return the stack as it runs on ``device/format``, by its own factor or else the pooled one."""
    device, number_format = key.split("/")
    factors = {**pooled, **dict(stack.adjust)}
    return replace(stack, adjust=tuple(factors.items())).on(device, number_format)


def stack_parts(
    stacks: Mapping[str, Stack], pooled: Mapping[str, float], samples: StackSamples, rows: Index
) -> StepParts:
    """Return the parts of each run's step in `rows` under its stack, NaN where it has none."""
    out = StepParts(**{f.name: np.full(len(rows), np.nan) for f in fields(StepParts)})
    pairs = sorted(set(zip(samples.stack[rows].tolist(), samples.key[rows].tolist(), strict=True)))
    for name, key in pairs:
        if name in stacks:
            chosen = (samples.stack[rows] == name) & (samples.key[rows] == key)
            parts = step_parts(samples.inputs.take(rows[chosen]), _on_device(stacks[name], pooled, key))
            for f in fields(StepParts):
                getattr(out, f.name)[chosen] = getattr(parts, f.name)
    return out


def predict_stacks(
    stacks: Mapping[str, Stack], pooled: Mapping[str, float], samples: StackSamples, rows: Index
) -> Floats:
    """Return the step time of each run in `rows` under its fitted stack, NaN where it has none. [s]"""
    return stack_parts(stacks, pooled, samples, rows).total_s
