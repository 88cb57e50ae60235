"""Samples to coefficients of one device: kernels, links and the reference training step, judged on shapes
that were held out.

Few samples move the coefficients little: every physical coefficient is pulled towards the shipped one of the
device (or the generic one) with a spread of a factor e, which many samples outweigh.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import exp, isfinite
from typing import Any

import numpy as np

from costmodels.calibrated import KernelCalibration, MemoryCurve
from costmodels.kernels.attention import CONTEXT
from costmodels.kernels.data import find_surface, source_of
from costmodels.kernels.fit import TreeSettings, errors, fit_physics, fit_surface
from costmodels.kernels.machine import Family, Floats, Format, Machine, find_format, machine_of
from costmodels.kernels.matmul import MATMUL
from costmodels.kernels.surface import Surface
from costmodels.samples import Sample
from hardware.device import Device
from hardware.errors import SpecError

__all__ = ["FittedKernels", "check_samples", "chosen_seconds", "fit_kernels", "fit_memory", "undisturbed"]

_PULL_LOG_SIGMA = 1.0
_LEAST_SCATTER = 0.1
"""Deviation of the logarithm of a sample, however well a few of them agree (assumed)."""
_LEAST = 4
"""Samples of a kind below which it keeps the shipped coefficients."""
_TREES_FROM = 16
"""Samples from which a learned correction is tried; it ships only where it wins on held-out shapes."""
_SMALL_TREES = TreeSettings(num_trees=120, depth=4, min_rows_per_leaf=4, robust=True)
_CONTRADICTION = 1.6
"""Two measurements of one shape that differ by more than this factor contradict each other (assumed)."""
_CONTRADICTING_SHARE = 0.2
_CURVES = {
    "memory": (("copy", "elementwise"), "num_bytes"),
    "norm": (("norm",), "num_bytes"),
    "optimizer": (("optimizer",), "num_params"),
}
"""Kinds of sample behind each curve, and the column of their shape that it depends on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittedKernels:
    """What the kernel samples of one device say."""

    surfaces: dict[tuple[str, str], Surface] = field(default_factory=dict)
    memory: MemoryCurve | None = None
    norm: MemoryCurve | None = None
    optimizer: MemoryCurve | None = None
    attention_backward_ratio: float | None = None
    report: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def chosen_seconds(samples: Sequence[Sample], statistic: str) -> Floats:
    """Return the time of every sample: its median, or its best where others used the machine too."""
    return np.array([s.best_s if statistic == "best" and isfinite(s.best_s) else s.seconds for s in samples])


def undisturbed(samples: Sequence[Sample]) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Return the samples without those that were taken while others used the machine, and a note of them.

    Of a kind of which no more than half would be left, all stay.
    """
    kept: list[Sample] = []
    dropped = busy = 0
    for group in _by_kind(samples):
        quiet = [s for s in group if s.disturbance <= 1.0]
        enough = 2 * len(quiet) > len(group)
        kept += quiet if enough else group
        dropped += len(group) - len(quiet) if enough else 0
        busy += 0 if enough else len(group) - len(quiet)
    notes = []
    if dropped:
        notes.append(f"{dropped} samples were taken while others used the machine and are left out")
    if busy:
        notes.append(
            f"{busy} samples were taken while others used the machine and are used for want of better"
        )
    return tuple(kept), tuple(notes)


def _by_kind(samples: Sequence[Sample]) -> list[list[Sample]]:
    groups: dict[tuple[str, float], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.kind, sample.at.get("degree", 0.0)), []).append(sample)
    return list(groups.values())


def check_samples(samples: Sequence[Sample], where: str) -> None:
    """Refuse samples of several devices, and samples that contradict each other.

    Raises
    ------
    SpecError
        saying which.
    """
    if not samples:
        raise SpecError(where, ["holds no sample with a time"])
    devices = sorted({s.device for s in samples})
    if len(devices) > 1:
        counts = ", ".join(f"{d!r} ({sum(s.device == d for s in samples)})" for d in devices)
        raise SpecError(
            where, [f"samples of several devices are mixed: {counts}; calibrate each device by itself"]
        )
    shapes: dict[Any, list[Sample]] = {}
    for sample in samples:
        shapes.setdefault(sample.key, []).append(sample)
    repeated = [group for group in shapes.values() if len(group) > 1]
    ratios = [max(s.best_s for s in g) / min(s.best_s for s in g) for g in repeated]
    wrong = [r for r in ratios if r > _CONTRADICTION]
    if repeated and len(wrong) > _CONTRADICTING_SHARE * len(repeated):
        worst = repeated[int(np.argmax(ratios))]
        shape = " ".join(f"{k}={v:g}" for k, v in worst[0].shape)
        times = ", ".join(f"{s.best_s:.4g} s" for s in worst)
        problem = (
            f"the samples contradict each other: {len(wrong)} of {len(repeated)} shapes that were measured "
            f"more than once differ by more than a factor {_CONTRADICTION}, worst {worst[0].kind} {shape} "
            f"({times}); was the machine busy, or the clock capped, during one of the runs?"
        )
        raise SpecError(where, [problem])


def fit_kernels(
    samples: Sequence[Sample], device: Device, *, statistic: str, like: KernelCalibration | None = None
) -> FittedKernels:
    """Return everything that kernel samples say about `device`.

    `like` is a calibration of a similar device, such as another share of the same processor: its surfaces
    stand, slower or faster by one fitted factor, where that does better on held-out samples than a fit of the
    samples alone, and where nothing was measured.
    """
    surfaces: dict[tuple[str, str], Surface] = {}
    report: dict[str, Any] = {}
    notes: list[str] = []
    for kind, family in (("matmul", MATMUL), ("attention_forward", CONTEXT)):
        for dtype in sorted({s.dtype for s in samples if s.kind == kind}):
            rows = [s for s in samples if s.kind == kind and s.dtype == dtype]
            fmt = _format(family, dtype)
            near = like.surfaces.get((family.name, fmt.name)) if like else None
            fits = []
            if near is not None:
                fits.append(_scaled_family(near, rows, machine_of(device, fmt), statistic))
            if len(rows) >= (_LEAST if near is None else _TREES_FROM):
                fits.append(_fit_family(family, rows, fmt, device, statistic))
            if not fits:
                notes.append(f"{kind} in {dtype}: {len(rows)} samples are too few, shipped coefficients stay")
                continue
            surface, said = min(fits, key=lambda fit: float(fit[1]["held_out"]["median_ape_frac"]))
            surfaces[family.name, fmt.name] = surface
            report[f"{kind}/{dtype}"] = said
    curves: dict[str, MemoryCurve | None] = {}
    for name, (kinds, column) in _CURVES.items():
        own, said = fit_memory([s for s in samples if s.kind in kinds], column, statistic)
        curves[name] = own if own is not None or like is None else getattr(like, name)
        if own is not None:
            report[name] = said
    ratio, said = _backward_ratio(samples, statistic)
    if ratio is not None:
        report["attention_backward"] = said
    elif like is not None:
        ratio = like.attention_backward_ratio
    kept = {key: s for key, s in like.surfaces.items() if key not in surfaces} if like else {}
    return FittedKernels(
        surfaces={**kept, **surfaces},
        memory=curves["memory"],
        norm=curves["norm"],
        optimizer=curves["optimizer"],
        attention_backward_ratio=ratio,
        report=report,
        notes=tuple(notes),
    )


def _format(family: Family, dtype: str) -> Format:
    return find_format(dtype if family is MATMUL else "bf16")


def _columns(family: Family, rows: Sequence[Sample]) -> dict[str, Floats]:
    at = [s.at for s in rows]
    if family is MATMUL:
        return {name: np.array([a[name] for a in at]) for name in MATMUL.columns}
    given = {n: np.array([a[n] for a in at]) for n in ("batch", "q_len", "heads", "kv_heads", "head_dim")}
    size = 4.0 if rows[0].dtype == "fp32" else 2.0
    ones = np.ones(len(at))
    rest = {"kv_len": given["q_len"], "value_dim": given["head_dim"], "causal": ones, "window": 0 * ones}
    return {**given, **rest, "kv_bytes": size * ones}


def _fit_family(
    family: Family, rows: Sequence[Sample], fmt: Format, device: Device, statistic: str
) -> tuple[Surface, dict[str, Any]]:
    shape, seconds = _columns(family, rows), chosen_seconds(rows, statistic)
    machine = machine_of(device, fmt)
    shipped, _ = find_surface(source_of(device).file, family, fmt)
    first = fit_physics(
        family, shape, seconds, machine, fmt, start=shipped.coefficients, pull_log_sigma=_PULL_LOG_SIGMA
    )
    groups = np.array(["/".join(f"{v:g}" for _, v in s.shape) for s in rows], dtype=np.str_)
    settings = _SMALL_TREES if len(rows) >= _TREES_FROM else TreeSettings(num_trees=1, learning_rate=1e-6)
    fitted = fit_surface(
        family, shape, seconds, machine, fmt, groups=groups, settings=settings, coefficients=first
    )
    before = shipped.predict(shape, machine, fmt).seconds
    surface = fitted.surface
    return surface, {
        "num_samples": len(rows),
        "held_out": fitted.held_out,
        "shipped": errors(before, seconds),
        "learned": surface.trees is not None and settings is _SMALL_TREES,
        "range": {n: [float(c.min()), float(c.max())] for n, c in shape.items() if n in family.columns},
        "changed": {
            n: round(v / shipped.coefficients[n], 4)
            for n, v in surface.coefficients.items()
            if shipped.coefficients.get(n)
        },
    }


def _scaled_family(
    near: Surface, rows: Sequence[Sample], machine: Machine, statistic: str
) -> tuple[Surface, dict[str, Any]]:
    """Return a similar device's surface on `machine`, all of its times multiplied by one factor.

    The logarithm of the factor is the samples' median, pulled towards zero: a similar device is believed to
    be as fast up to a factor e, each sample to scatter as they do.
    """
    shape, seconds = _columns(near.family, rows), chosen_seconds(rows, statistic)
    own = replace(near, machine=machine)
    before = own.predict(shape, machine, near.fmt).seconds
    ratios = np.log(seconds / before)

    def pooled(values: Floats) -> float:
        if not len(values):
            return 0.0
        noise = max(float(np.std(values)), _LEAST_SCATTER) / _PULL_LOG_SIGMA
        return float(np.median(values)) * len(values) / (len(values) + noise**2)

    held = np.exp([pooled(np.delete(ratios, i)) for i in range(len(ratios))])
    factor = exp(pooled(ratios))
    slower = {
        name: value * factor if name.endswith("_s") else value / factor
        for name, value in near.coefficients.items()
        if name.endswith("_s") or name in ("compute_frac", "memory_frac", "cache_gain")
    }
    surface = replace(
        own,
        coefficients={**near.coefficients, **slower},
        sigma=np.maximum(near.sigma, float(np.std(ratios))),
        sigma_log_s=near.sigma_log_s + np.log(factor),
    )
    return surface, {
        "num_samples": len(rows),
        "held_out": errors(before * held, seconds),
        "shipped": errors(before, seconds),
        "learned": near.trees is not None,
        "range": {n: [float(c.min()), float(c.max())] for n, c in shape.items() if n in near.family.columns},
        "like": round(factor, 4),
    }


def fit_memory(
    rows: Sequence[Sample], column: str, statistic: str
) -> tuple[MemoryCurve | None, dict[str, Any]]:
    """Return launch time, cached and uncached rate that fit best, and the error on held-out sizes."""
    if len(rows) < 4:
        return None, {}
    size, seconds = np.array([s.at[column] for s in rows]), chosen_seconds(rows, statistic)
    held = np.empty(len(rows))
    order = np.argsort(size, kind="stable")
    for fold in range(2):
        test = order[fold::2]
        train = np.setdiff1d(order, test)
        held[test] = _memory_curve(size[train], seconds[train]).seconds(size[test])
    said = {"num_samples": len(rows), "held_out": errors(held, seconds)}
    return _memory_curve(size, seconds), said | {"range": {column: [float(size.min()), float(size.max())]}}


def _memory_curve(size: Floats, seconds: Floats) -> MemoryCurve:
    from scipy.optimize import least_squares  # slow to import, needed for fitting only

    rate = float(np.max(size / seconds))
    start = np.log([float(seconds.min()), 2.0**21, rate, float(size[-1] / seconds[-1])])

    def curve(point: Floats) -> MemoryCurve:
        launch, cache, fast, slow = np.exp(point).tolist()
        return MemoryCurve(
            launch_s=launch, cache_bytes=cache, cached_bytes_per_s=max(fast, slow), bytes_per_s=slow
        )

    def residual(point: Floats) -> Floats:
        misfit: Floats = np.log(curve(point).seconds(size) / seconds)
        return np.concatenate([misfit, 0.03 * (point - start)])

    best = least_squares(residual, start, loss="soft_l1", f_scale=0.1)
    return curve(np.asarray(best.x, dtype=np.float64))


def _backward_ratio(samples: Sequence[Sample], statistic: str) -> tuple[float | None, dict[str, Any]]:
    pairs = []
    forward = {(s.shape, s.dtype): s for s in samples if s.kind == "attention_forward"}
    for sample in samples:
        twin = forward.get((sample.shape, sample.dtype))
        if sample.kind == "attention_backward" and twin is not None:
            pairs.append(chosen_seconds([sample, twin], statistic))
    if len(pairs) < _LEAST:
        return None, {}
    logs = np.log([p[0] / p[1] for p in pairs])
    ratio = exp(float(np.median(logs)))
    spread = float(np.median(np.abs(np.expm1(logs - np.log(ratio)))))
    return ratio, {"num_samples": len(pairs), "ratio": round(ratio, 3), "median_ape_frac": round(spread, 4)}
