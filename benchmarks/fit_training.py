"""Fit the training stacks and their learned corrections to measured runs, and print the held-out error.

Run from the checkout's root::

    python -m benchmarks.fit_training ../shared/data/training_runs.csv          # prints only
    python -m benchmarks.fit_training ../shared/data/training_runs.csv --write  # also writes coefficients

Held out means: whole groups (same model, devices and batch) are left out, five folds, everything refitted.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.training_spread import (
    COVERAGE,
    MIN_RUNS,
    fit_between,
    leave_out,
    runs_behind,
    sources_of,
)
from costmodels.accuracy import Errors, errors
from costmodels.intervals import Z90
from costmodels.kernels.fit import TreeSettings, fit_trees
from costmodels.kernels.times import kernel_model
from costmodels.run_table import read_run_table
from costmodels.stacks import ANCHORED, FITTED, Stack, find_stack, stack_names
from costmodels.strategy import ConfigTable
from costmodels.training.evaluate import training_inputs
from costmodels.training.layer_costs import matmul_dtype
from costmodels.training.learned import MANY_DEVICES, Correction, box_of, correction_features
from costmodels.training.runs import NEEDED_COLUMNS, Run, group_runs, parse_runs
from costmodels.training.spread import Between
from costmodels.training.stack_fit import StackSamples, fit_stacks, predict_stacks, stack_parts
from costmodels.training.step_inputs import StepInputs

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Labels = npt.NDArray[np.str_]
Flags = npt.NDArray[np.bool_]

ROOT = Path(__file__).resolve().parents[1] / "costmodels" / "data" / "coefficients" / "training"
MANY_TREES = TreeSettings(num_trees=400, depth=4, learning_rate=0.05, min_rows_per_leaf=4, l2=1.0)
FEW_TREES = TreeSettings(num_trees=80, depth=3, learning_rate=0.05, min_rows_per_leaf=5, l2=2.0)
MANY_RUNS = 200
NUM_FOLDS = 5
WORTH = 0.97
"""Of the analytic model's held-out error, the most that a correction may leave to ship."""
RANGED: dict[str, Callable[[Run], int]] = {
    "devices": lambda r: r.cluster.num_devices,
    "seq_len": lambda r: r.job.seq_len,
    "hidden": lambda r: r.job.model.hidden,
    "tp": lambda r: r.strategy.tp,
    "pp": lambda r: r.strategy.pp,
    "cp": lambda r: r.strategy.cp,
    "ep": lambda r: r.strategy.ep,
}
"""What a plan is held against: outside of these ranges of a stack's runs it is extrapolated."""
MIN_RUNS_TO_LEARN = 30
"""Runs that a stack needs before a correction is tried."""


def load(path: Path) -> tuple[list[Run], StackSamples]:
    """Return the timed runs that may be fitted, and their samples."""
    runs, _ = parse_runs(read_run_table(path, NEEDED_COLUMNS))
    runs = [r for r in runs if r.step_s and "NC" not in r.row.get("license", "")]
    order: list[npt.NDArray[np.intp]] = []
    tables: list[StepInputs] = []
    for group in group_runs(runs):
        tables.append(training_inputs(group.job, group.cluster, group.configs))
        order.append(group.index)
    inverse = np.argsort(np.concatenate(order))
    samples = StackSamples(
        inputs=StepInputs.concatenate(tables).take(inverse),
        measured_s=np.array([r.step_s for r in runs], dtype=np.float64),
        stack=np.array([r.job.stack for r in runs]),
        key=np.array([f"{r.cluster.device.name}/{matmul_dtype(r.job.precision)}" for r in runs]),
        unmeasured=frozenset(
            f"{r.cluster.device.name}/{matmul_dtype(r.job.precision)}"
            for r in runs
            if not kernel_model(r.cluster.device).source.same_die or "fp4" in r.job.precision
        ),
    )
    return runs, samples


def features_of(
    runs: list[Run], samples: StackSamples, rows: Index, stacks: dict[str, Stack], pooled: dict[str, float]
) -> Floats:
    """Return the correction's features of the runs in `rows`."""
    parts = stack_parts(stacks, pooled, samples, rows)
    chosen = [runs[i] for i in rows]
    return correction_features(
        ConfigTable.from_strategies([r.strategy for r in chosen]),
        samples.inputs.take(rows),
        parts,
        hidden=np.array([r.job.model.hidden for r in chosen]),
        seq_len=np.array([r.job.seq_len for r in chosen]),
    )


def routed(runs: list[Run]) -> npt.NDArray[np.bool_]:
    """Return which runs train a model with routed experts."""
    return np.array([r.job.model.num_active_params < r.job.model.num_params for r in runs])


def folds_of(runs: list[Run], seed: int = 0) -> npt.NDArray[np.int64]:
    """Return the fold of every run; a group is never split."""
    names, index = np.unique([r.group for r in runs], return_inverse=True)
    chosen: npt.NDArray[np.int64] = (np.random.default_rng(seed).permutation(len(names)) % NUM_FOLDS)[index]
    return chosen


def learn(features: Floats, ratio: Floats, sigma: float = 0.0, sigma_many: float = 0.0) -> Correction:
    """Return the correction fitted to ln(measured / analytic)."""
    low, high = box_of(features)
    size = MANY_TREES if len(ratio) >= MANY_RUNS else FEW_TREES
    return Correction(
        trees=fit_trees(features, ratio, size), low=low, high=high, sigma=sigma, sigma_many=sigma_many
    )


def held_out(
    runs: list[Run], samples: StackSamples, bases: dict[str, Stack], learned: tuple[str, ...]
) -> tuple[Floats, Floats]:
    """Return held-out predictions of the analytic model and of the corrected one."""
    folds = folds_of(runs)
    analytic, corrected = np.full(len(runs), np.nan), np.full(len(runs), np.nan)
    for fold in range(NUM_FOLDS):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        fitted, pooled = fit_stacks(bases, samples, train)
        stacks = {**bases, **fitted}
        analytic[test] = predict_stacks(stacks, pooled, samples, test)
        corrected[test] = analytic[test]
        for name in learned:
            own, other = train[samples.stack[train] == name], test[samples.stack[test] == name]
            if len(own) and len(other):
                base = predict_stacks(stacks, pooled, samples, own)
                ratio = np.log(samples.measured_s[own] / base)
                fit = learn(features_of(runs, samples, own, stacks, pooled), ratio)
                corrected[other] *= np.exp(fit.log_ratio(features_of(runs, samples, other, stacks, pooled)))
    return analytic, corrected


def winners(
    runs: list[Run], samples: StackSamples, analytic: Floats, corrected: Floats, tried: tuple[str, ...]
) -> tuple[tuple[str, ...], Floats]:
    """Return the stacks whose correction lowers the held-out error and ranks no worse, and what is then
    predicted.
    """
    wins = []
    for name in tried:
        rows = np.flatnonzero(samples.stack == name)
        plain, learned = (
            errors(p[rows], samples.measured_s[rows], p[rows], p[rows], [runs[i].group for i in rows])
            for p in (analytic, corrected)
        )
        worse = learned.regret_mean_frac > plain.regret_mean_frac
        if learned.mape_frac < WORTH * plain.mape_frac and not worse:
            wins.append(name)
    return tuple(wins), np.where(np.isin(samples.stack, wins), corrected, analytic)


def sigma_of(predicted: Floats, measured: Floats) -> float:
    """Return the spread whose 90 % interval holds the wanted share of these held-out runs."""
    size = np.abs(np.log(measured / predicted))
    return float(max(np.quantile(size, COVERAGE) / Z90, 0.01))


def summary(name: str, runs: list[Run], predicted: Floats, measured: Floats, rows: Index) -> Errors:
    """Print and return the errors of some runs."""
    e = errors(
        predicted[rows],
        measured[rows],
        predicted[rows] * 0,
        predicted[rows] * 9,
        [runs[i].group for i in rows],
    )
    print(
        f"  {name:26s} n={e.num_rows:4d}  MAPE {e.mape_frac:6.1%}  median {e.median_ape_frac:6.1%}"
        f"  signed {e.signed_median_frac:+6.1%}  regret {e.regret_mean_frac:6.2%}"
        f" (max {e.regret_max_frac:6.1%}, random {e.random_regret_frac:6.1%})"
    )
    return e


def report(title: str, runs: list[Run], predicted: Floats, measured: Floats) -> None:
    """Print errors by source and over all."""
    print(title)
    sources = np.array([r.source for r in runs])
    means = [
        summary(source, runs, predicted, measured, np.flatnonzero(sources == source)).mape_frac
        for source in sorted(set(sources))
    ]
    big = np.array([r.cluster.num_devices >= 32 for r in runs])
    summary("32 devices and more", runs, predicted, measured, np.flatnonzero(big))
    summary("all", runs, predicted, measured, np.arange(len(runs)))
    print(f"  mean over sources: {np.mean(means):.1%}")


def sigmas(
    names: list[str], runs: list[Run], samples: StackSamples, predicted: Floats, rows: Index
) -> dict[str, dict[str, float]]:
    """Return the spread of each stack within its sources, dense and with experts, from the runs in `rows`.

    A stack with too few runs, its family's counted in, takes that of all; so does the empty name.
    """
    experts = routed(runs)
    out: dict[str, dict[str, float]] = {}
    for label, of_kind in (("sigma", ~experts), ("sigma_experts", experts)):
        every = rows[of_kind[rows]]
        everyone = sigma_of(predicted[every], samples.measured_s[every])
        for name in ("", *names):
            chosen = runs_behind(samples, name, every)
            value = sigma_of(predicted[chosen], samples.measured_s[chosen]) if len(chosen) else everyone
            out.setdefault(name, {})[label] = value
    return out


def within_of(
    samples: StackSamples, experts: npt.NDArray[np.bool_], spread: dict[str, dict[str, float]]
) -> Floats:
    """Return the spread within sources of every run."""
    labels = np.where(experts, "sigma_experts", "sigma")
    return np.array([spread[s][k] for s, k in zip(samples.stack.tolist(), labels.tolist(), strict=True)])


def within_others(runs: list[Run], samples: StackSamples, predicted: Floats, label: Labels) -> Floats:
    """Return the spread of every run's stack within the runs of other labels."""
    names = sorted(set(samples.stack.tolist()))
    out = np.full(len(runs), np.nan)
    for one in sorted(set(label)):
        spread = sigmas(names, runs, samples, predicted, np.flatnonzero(label != one))
        own = label == one
        out[own] = within_of(samples, routed(runs), spread)[own]
    return out


def ground(runs: list[Run], rows: Index) -> dict[str, object]:
    """Return the sources of some runs and the range of what they ran."""
    chosen = [runs[i] for i in rows]
    ranges = {
        name: [min(read(r) for r in chosen), max(read(r) for r in chosen)] if chosen else []
        for name, read in RANGED.items()
    }
    return {"sources": sorted({r.source for r in chosen}), "ranges": ranges if chosen else {}}


def held_out_mape(error: Floats, mine: Flags, experts: Flags) -> str:
    """Return the mean error of a stack's runs in words, of dense and routed models where it has both."""
    size = np.abs(error)
    kinds = {name: mine & kind for name, kind in (("dense", ~experts), ("routed", experts))}
    parts = [f"{name} {size[rows].mean():.1%}" for name, rows in kinds.items() if rows.any()]
    return f"{size[mine].mean():.1%}" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")


def write(
    path: Path,
    fitted: dict[str, Stack],
    pooled: dict[str, float],
    sigma: dict[str, dict[str, float]],
    counts: dict[str, int],
    behind: dict[str, dict[str, object]],
    added: Between,
    devices: list[str],
    corrections: dict[str, object],
    mape: dict[str, str],
) -> None:
    """Write the coefficient files."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    file = ROOT / "stacks.json"
    data = json.loads(file.read_text())
    shared = {k: round(v, 4) for k, v in pooled.items()}
    for name, entry in data["stacks"].items():
        entry |= {label: round(value, 4) for label, value in sigma.get(name, sigma[""]).items()}
        entry |= behind[name]
        entry["adjust"] = shared
        if name in ANCHORED:
            continue
        stack = fitted[name]
        entry["fitted"] = {n: float(f"{getattr(stack, n):.5g}") for n in FITTED}
        entry["evidence"] = f"no run of this stack; host and hiding moved as in {len(counts)} measured stacks"
        if name in counts:
            entry["adjust"] = shared | {k: round(v, 4) for k, v in stack.adjust}
            entry["evidence"] = f"{counts[name]} measured runs; held-out MAPE {mape[name]}"
    stamp = {"samples": path.name, "samples_sha256": digest, "date": datetime.now(UTC).date().isoformat()}
    file.write_text(
        json.dumps(
            data
            | {
                "between": {k: round(v, 4) for k, v in asdict(added).items()} | {"devices": devices},
                "provenance": stamp | {"num_samples": sum(counts.values())},
            },
            indent=1,
        )
        + "\n"
    )
    learned = {"provenance": stamp, "corrections": corrections}
    (ROOT / "corrections.json").write_text(json.dumps(learned, indent=1) + "\n")


def main() -> None:
    """Fit, print, and write when asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    runs, samples = load(arguments.runs)
    bases = {n: find_stack(n, fitted=False) for n in stack_names()}
    names = sorted(set(samples.stack.tolist()))
    counts = {n: int((samples.stack == n).sum()) for n in names}
    tried = tuple(n for n in names if counts[n] >= MIN_RUNS_TO_LEARN)
    analytic, corrected = held_out(runs, samples, bases, tried)
    wins, final = winners(runs, samples, analytic, corrected, tried)
    report("analytic model, held out by group", runs, analytic, samples.measured_s)
    report(
        f"with learned corrections ({', '.join(wins) or 'none'}), held out by group",
        runs,
        final,
        samples.measured_s,
    )
    fitted, pooled = fit_stacks(bases, samples, np.arange(len(runs)))
    mine = {n: samples.stack == n for n in names}
    everyone = np.arange(len(runs))
    sigma = sigmas(names, runs, samples, analytic, everyone)
    label = sources_of(runs)
    added = fit_between(
        samples,
        leave_out(samples, label),
        within_others(runs, samples, analytic, label),
        within_of(samples, routed(runs), sigma),
        ~routed(runs),
    )
    print(f"between sources and devices: {added}")
    behind = {n: ground(runs, runs_behind(samples, n, everyone)) for n in bases}
    mape = {n: float(np.abs(final[mine[n]] / samples.measured_s[mine[n]] - 1).mean()) for n in names}
    corrections: dict[str, object] = {}
    for name in wins:
        rows = np.flatnonzero(mine[name])
        base = predict_stacks(fitted, pooled, samples, rows)
        features = features_of(runs, samples, rows, fitted, pooled)
        many = np.array([runs[i].cluster.num_devices >= MANY_DEVICES for i in rows])
        overall = sigma_of(corrected[rows], samples.measured_s[rows])
        few_s, many_s = (
            sigma_of(corrected[rows[m]], samples.measured_s[rows[m]]) if m.sum() >= MIN_RUNS else overall
            for m in (~many, many)
        )
        fit = learn(features, np.log(samples.measured_s[rows] / base), few_s, many_s)
        corrections[name] = {
            "num_samples": len(rows),
            "held_out_mape_frac": round(mape[name], 5),
            "sigma": round(fit.sigma, 5),
            "sigma_many": round(fit.sigma_many, 5),
            "low": fit.low.round(6).tolist(),
            "high": fit.high.round(6).tolist(),
            "trees": fit.trees.to_json(),
        }
    if arguments.write:
        devices = sorted(set(samples.key.tolist()))
        said = {n: held_out_mape(final / samples.measured_s - 1, mine[n], routed(runs)) for n in names}
        write(arguments.runs, fitted, pooled, sigma, counts, behind, added, devices, corrections, said)
        print(f"written to {ROOT}")


if __name__ == "__main__":
    main()
