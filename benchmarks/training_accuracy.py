"""Reprint the accuracy table of training predictions, held-out figures only, baselines beside.

Run from the checkout's root, with the measured runs at hand::

    python -m benchmarks.training_accuracy ../shared/data/training_runs.csv

Held out by group: whole groups (same model, devices and batch) are left out in five folds, everything is
refitted.
Held out by source: each source is left out whole, so its software stack keeps what is assumed of it unless
another source shares it. The regressor is a plain boosted-tree model on the same columns; constant MFU is one
share of the rated peak. The tables under README are the README's, figures of earlier tools beside.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.fit_training import (
    MIN_RUNS_TO_LEARN,
    folds_of,
    held_out,
    load,
    routed,
    sigma_of,
    sigmas,
    winners,
    within_of,
    within_others,
)
from benchmarks.training_floor import floor_lines, release_lines
from benchmarks.training_spread import (
    MIN_RUNS,
    LeftOut,
    between_sources,
    leave_out,
    runs_behind,
    source_variance,
    sources_of,
)
from benchmarks.training_table import readme_table, readme_ways
from costmodels.accuracy import Errors, errors
from costmodels.intervals import Z90
from costmodels.model_flops import training_flops
from costmodels.stacks import find_stack, stack_names
from costmodels.training.evaluate import rated_peak_flops_per_s
from costmodels.training.learned import MANY_DEVICES
from costmodels.training.runs import Run
from costmodels.training.stack_fit import StackSamples

Floats = npt.NDArray[np.float64]

HEADER = "| rows | n | MAPE | median | signed | regret | random | coverage |\n" + "|---" * 8 + "|"


def ideal_s(runs: list[Run]) -> Floats:
    """Return the step time of every run at the rated peak."""
    return np.array(
        [
            training_flops(r.job.model, r.job.seq_len)
            * r.job.global_batch
            / (r.cluster.num_devices * rated_peak_flops_per_s(r.cluster.device, r.job.precision))
            for r in runs
        ]
    )


def plain_features(runs: list[Run]) -> Floats:
    """Return what a model without physics sees: logarithms of FLOPs, degrees and the bubble."""
    rows = []
    for run, ideal in zip(runs, ideal_s(runs), strict=True):
        s = run.strategy
        micro = max(run.job.global_batch / (s.dp * s.micro_batch), 1.0)
        degrees = (
            s.tp,
            s.pp,
            s.dp,
            s.cp,
            s.ep,
            s.vpp,
            s.micro_batch,
            run.cluster.num_devices,
            run.job.seq_len,
        )
        bubble = (s.pp - 1) / micro / s.vpp
        peak = rated_peak_flops_per_s(run.cluster.device, run.job.precision)
        rows.append([ideal, *degrees, run.job.model.hidden, peak])
        rows[-1] = [*np.log(rows[-1]), bubble, float(s.recompute), float(s.zero)]
    return np.array(rows)


def regressor(runs: list[Run], measured_s: Floats, folds: npt.NDArray[np.int64]) -> Floats:
    """Return held-out predictions of a boosted-tree regressor on the plain features."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    features, ideal = plain_features(runs), ideal_s(runs)
    out = np.full(len(runs), np.nan)
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        model = HistGradientBoostingRegressor(max_iter=300, learning_rate=0.05, random_state=0)
        model.fit(features[train], np.log(measured_s / ideal)[train])
        out[test] = ideal[test] * np.exp(model.predict(features[test]))
    return out


def constant_mfu(runs: list[Run], measured_s: Floats, folds: npt.NDArray[np.int64]) -> Floats:
    """Return held-out predictions at one share of the rated peak."""
    ideal = ideal_s(runs)
    out = np.full(len(runs), np.nan)
    for fold in np.unique(folds):
        share = np.median((measured_s / ideal)[folds != fold])
        out[folds == fold] = ideal[folds == fold] * share
    return out


def left_out_sigma(runs: list[Run], samples: StackSamples, left: LeftOut, predicted: Floats) -> Floats:
    """Return the spread of every prediction that was made without the run's source, from the other ones."""
    within = within_others(runs, samples, predicted, left.label)
    out = np.full(len(runs), np.nan)
    for source in sorted(set(left.label)):
        own = left.label == source
        added = between_sources(left, samples.measured_s, within, ~own)
        out[own] = np.sqrt(within**2 + source_variance(added, left.known, left.waits))[own]
    return out


def figures(
    runs: list[Run], predicted: Floats, measured: Floats, sigma: Floats, rows: npt.NDArray[np.intp]
) -> Errors:
    """Return the errors of some runs with their 90 % interval."""
    low, high = predicted * np.exp(-Z90 * sigma), predicted * np.exp(Z90 * sigma)
    groups = [runs[i].group for i in rows]
    return errors(predicted[rows], measured[rows], low[rows], high[rows], groups)


def line(label: str, e: Errors) -> str:
    """Return one row of the table."""
    return (
        f"| {label} | {e.num_rows} | {e.mape_frac:.1%} | {e.median_ape_frac:.1%} "
        f"| {e.signed_median_frac:+.1%} | {e.regret_mean_frac:.2%} | {e.random_regret_frac:.1%}"
        f" | {e.interval_coverage_frac:.2f} |"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    path = parser.parse_args().runs
    runs, samples = load(path)
    measured = samples.measured_s
    names = sorted(set(samples.stack.tolist()))
    bases = {n: find_stack(n, fitted=False) for n in stack_names()}
    tried = tuple(n for n in names if (samples.stack == n).sum() >= MIN_RUNS_TO_LEARN)
    analytic, tentative = held_out(runs, samples, bases, tried)
    wins, corrected = winners(runs, samples, analytic, tentative, tried)
    everyone = np.arange(len(runs))
    sources = sources_of(runs)
    left = leave_out(samples, sources)
    left_sigma = left_out_sigma(runs, samples, left, analytic)
    within = within_of(samples, routed(runs), sigmas(names, runs, samples, corrected, everyone))
    added = between_sources(left, measured, within, np.ones(len(runs), dtype=bool))
    few = {n: len(runs_behind(samples, n, everyone)) == 0 for n in names}
    sigma = np.where([few[s] for s in samples.stack.tolist()], np.hypot(within, added["stack"]), within)
    big = np.array([r.cluster.num_devices >= MANY_DEVICES for r in runs])
    for name in wins:
        for rows in ((samples.stack == name) & big, (samples.stack == name) & ~big):
            if rows.sum() >= MIN_RUNS:
                sigma[rows] = sigma_of(corrected[rows], measured[rows])
    folds = folds_of(runs)
    others = {
        "the analytic model without learned corrections": (analytic, sigma),
        "each source left out whole": (left.step_s, left_sigma),
        "boosted trees without physics": (regressor(runs, measured, folds), sigma),
        "constant MFU": (constant_mfu(runs, measured, folds), sigma),
    }

    def errors_of(name: str) -> Errors:
        predicted, spread = others[name]
        return figures(runs, predicted, measured, spread, np.flatnonzero(~np.isnan(predicted)))

    for title, predicted, spread in (
        ("Held out by group", corrected, sigma),
        ("Source left out, interval from the other sources", left.step_s, left_sigma),
    ):
        each = {
            s: figures(runs, predicted, measured, spread, np.flatnonzero(sources == s))
            for s in sorted(set(sources))
        }
        print(f"{title}\n\n{HEADER}")
        print("\n".join(line(source, e) for source, e in each.items()))
        mean = np.mean([e.mape_frac for e in each.values()])
        coverage = np.mean([e.interval_coverage_frac for e in each.values()])
        print(f"\nmean over sources: {mean:.1%}, coverage {coverage:.2f}\n")
        print("\n".join(floor_lines(runs, sources, predicted, measured)) + "\n")
    # The mean and the coverage of the last pass are those of whole sources left out.
    remark = {"each source left out whole": f"mean over sources {100 * mean:.1f} %, coverage {coverage:.2f}"}
    print("\n".join(release_lines(runs, measured)) + "\n")
    print("README\n")
    print("\n".join(readme_table(runs, lambda rows: figures(runs, corrected, measured, sigma, rows))))
    print()
    print("\n".join(readme_ways({name: (errors_of(name), remark.get(name, "")) for name in others})))


if __name__ == "__main__":
    main()
