"""How far training predictions are off on sources and devices that the fit left out whole.

A module of `benchmarks.fit_training` and `benchmarks.training_accuracy`. Every source (or device) is left out
in turn and everything is refitted; what errors exceed the spread within sources is the spread between them.
The answers are the least that hold the wanted share of runs, a source of n runs weighing as its square root,
so that neither one large source nor many tiny ones decide alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.intervals import covering_spread
from costmodels.kernels.data import SAME_DIE
from costmodels.stacks import find_stack, stack_names
from costmodels.training.runs import Run
from costmodels.training.spread import Between
from costmodels.training.stack_fit import StackSamples, family, fit_stacks, stack_parts

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Index = npt.NDArray[np.intp]
Labels = npt.NDArray[np.str_]

COVERAGE = 0.92
"""Share of held-out runs that the 90 % interval is widened to hold, against small samples."""
MIN_RUNS = 8
"""Runs that a stack, with its family, needs before it counts as measured."""
HOST_BOUND = 0.1
"""Share of the step from which waiting for the host tells of the host."""
MIN_HOST_BOUND = 30
ASSUMED_HOST_FRAC = 0.5
"""Spread of a host's speed where too few runs wait for it (assumed)."""
PACKAGES = {"gb200": "b200", "gb300": "b300"}
"""Devices that are a package of others; they are left out together with those."""


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """Predictions of runs, each made without the runs of its label. One entry per run."""

    label: Labels
    step_s: Floats
    waits: Floats
    """Share of the step that waits for the host."""
    known: Flags
    """Whether the stack has enough runs of other labels."""


def leave_out(samples: StackSamples, label: Labels) -> LeftOut:
    """Return predictions of the runs of every label with those runs left out of the fit."""
    bases = {n: find_stack(n, fitted=False) for n in stack_names()}
    step_s, waits = np.full(len(label), np.nan), np.full(len(label), np.nan)
    known = np.zeros(len(label), dtype=bool)
    for one in sorted(set(label)):
        test, train = np.flatnonzero(label == one), np.flatnonzero(label != one)
        fitted, pooled = fit_stacks(bases, samples, train)
        parts = stack_parts({**bases, **fitted}, pooled, samples, test)
        step_s[test] = parts.total_s
        waits[test] = parts.host_s / parts.total_s
        known[test] = [len(runs_behind(samples, str(name), train)) > 0 for name in samples.stack[test]]
    return LeftOut(label, step_s, waits, known)


def runs_behind(samples: StackSamples, name: str, rows: Index) -> Index:
    """Return the runs among `rows` that tell of a stack: its own or, where those are few, its family's."""
    own = rows[samples.stack[rows] == name]
    if len(own) >= MIN_RUNS:
        return own
    kin = rows[[family(str(n)) == family(name) for n in samples.stack[rows]]]
    return kin if len(kin) >= MIN_RUNS else kin[:0]


def sources_of(runs: list[Run]) -> Labels:
    """Return the source of every run."""
    return np.array([r.source for r in runs])


def dies_of(samples: StackSamples) -> Labels:
    """Return the device of every run, one name for all that share their dies."""
    names = [key.split("/")[0] for key in samples.key.tolist()]
    return np.array([PACKAGES.get(SAME_DIE.get(n, n), SAME_DIE.get(n, n)) for n in names])


def weights(label: Labels) -> Floats:
    """Return the weight of every run: a label of n runs weighs as the square root of n."""
    _, inverse, counts = np.unique(label, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / np.sqrt(counts[inverse]), dtype=np.float64)


def source_variance(added: Mapping[str, float], known: Flags, waits: Floats) -> Floats:
    """Return what leaving the source adds to the variance of every run."""
    new = np.where(known, added["source"], added["stack"])
    return new**2 + (added["host_frac"] * waits) ** 2


def between_sources(left: LeftOut, measured_s: Floats, within: Floats, keep: Flags) -> dict[str, float]:
    """Return the spreads between sources, from the runs in `keep`."""
    error = np.log(measured_s / left.step_s)
    weight = weights(left.label)
    bound = left.waits > HOST_BOUND
    out = {}
    for name, kind in (("source", left.known), ("stack", ~left.known)):
        rows = keep & kind & ~bound
        out[name] = covering_spread(error[rows], within[rows] ** 2, share=COVERAGE, weight=weight[rows])
    # A stack without any measured source is no surer than one with some.
    out["stack"] = max(out["stack"], out["source"])
    rows = keep & bound
    out["host_frac"] = ASSUMED_HOST_FRAC
    if rows.sum() >= MIN_HOST_BOUND:
        so_far = within**2 + source_variance(out | {"host_frac": 0.0}, left.known, left.waits)
        out["host_frac"] = covering_spread(
            error[rows], so_far[rows], lever=left.waits[rows], share=COVERAGE, weight=weight[rows]
        )
    return out


def fit_between(
    samples: StackSamples, sources: LeftOut, within: Floats, within_all: Floats, dense: Flags
) -> Between:
    """Return all spreads between what was measured and what was not.

    Parameters
    ----------
    within : spread within the sources that were left when each run's own was left out. shape (runs,)
    within_all : spread within all sources. shape (runs,)
    dense : runs without routed experts; those change too much by version to tell devices apart.
    """
    added = between_sources(sources, samples.measured_s, within, np.ones(len(within), dtype=bool))
    devices = leave_out(samples, dies_of(samples))
    error = np.log(samples.measured_s / devices.step_s)
    rows = dense & devices.known
    weight = weights(devices.label)
    device = covering_spread(error[rows], within_all[rows] ** 2, share=COVERAGE, weight=weight[rows])
    return Between(**added, device=device)
