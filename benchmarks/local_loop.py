"""The whole loop on this machine: profile, calibrate, plan, and every planned configuration measured.

``python -m benchmarks.local_loop FOLDER [--minutes M] [--statistic best|median] [--rounds N] [--reuse]``

Needs torch. Profiles 1, 2 and 4 processes of one thread on this machine for M minutes in all, calibrates,
plans examples/local/small-gpt.yaml over as many ranks with tensor, pipeline and data parallelism in every
mix, then trains every configuration for real, in N interleaved rounds. Prints predicted against measured,
the median error, and how far the recommended configuration is from the best measured. FOLDER receives
samples, clusters and calibrations; with --reuse those there are used.

What was measured while others used the machine is taken again at once, and left out where another round has
it undisturbed; how often is printed. On a machine that others use all the time, ``--statistic best`` compares
undisturbed times on both sides.
"""

import argparse
import os
from pathlib import Path

import numpy as np

from costmodels.calibrated import using
from costmodels.calibration.file import calibration_text, read_calibration
from costmodels.samples import Sample, read_samples
from planner.calibration import calibrate_files
from planner.cli.render_calibration import print_calibration
from planner.plan_io import write_text
from planner.profiling.launch import measure_locally
from planner.profiling.plan_tasks import step_task
from planner.profiling.profile import ProfileRequest, profile_here
from planner.request import read_train_request, resolve
from planner.tune import TuneRequest, candidates, tune

ROOT = Path(__file__).parents[1]
RANKS = (1, 2, 4)
SHARES = {1: 0.25, 2: 0.33, 4: 0.42}
"""Of the profile's minutes: more ranks have more configurations to learn about."""
WHAT = ("kernels", "memory", "all_reduce", "p2p", "steps")


def profile(folder: Path, minutes: float) -> None:
    for ranks in RANKS:
        done = profile_here(
            ProfileRequest(
                output=folder / f"samples-{ranks}.csv",
                what=WHAT if ranks > 1 else ("kernels", "memory", "steps"),
                backend="cpu",
                ranks=ranks if ranks > 1 else None,
                device=f"cpu-share-{ranks}",
                minutes=minutes * SHARES[ranks],
            )
        )
        if done is not None:
            print(
                f"{ranks} ranks: {done.num_measured} shapes measured, {done.num_retaken} taken again because "
                f"others used the machine, {done.num_disturbed} of them in vain"
            )


def calibrate(folder: Path, statistic: str) -> None:
    for ranks in RANKS:
        document, notes = calibrate_files(
            [folder / f"samples-{ranks}.csv"],
            cluster=None,
            write_cluster=folder / f"cluster-{ranks}.yaml",
            statistic=statistic,
            like=folder / "calibration-1.json" if ranks > 1 else None,
        )
        write_text(calibration_text(document), folder / f"calibration-{ranks}.json")
        print_calibration(document)
        print(*notes, sep="\n")


def measured_steps(folder: Path, ranks: int, rounds: int, statistic: str) -> dict[str, float]:
    """Return the seconds of every configuration by its words, over the rounds in which it was undisturbed."""
    request = read_train_request(str(ROOT / f"examples/local/request-{ranks}.yaml"), flags(folder, ranks))
    job, cluster = resolve(request)
    found = candidates(request)
    tasks = [step_task(job, c.strategy) for c in found]
    taken: list[list[Sample]] = [[] for _ in tasks]
    for turn in range(rounds):
        path = folder / f"steps-{ranks}-{turn}.csv"
        path.unlink(missing_ok=True)
        measure_locally(tasks, path, backend="cpu", num_ranks=ranks, device=cluster.device.name)
        known = {s.shape: s for s in read_samples(path).samples}
        for task, samples in zip(tasks, taken, strict=True):
            samples.append(known[task.shape])
    kept = [[s for s in t if s.disturbance <= 1.0] or [min(t, key=lambda s: s.disturbance)] for t in taken]
    disturbed = [t[0] for t in kept if t[0].disturbance > 1.0]
    left_out = sum(map(len, taken)) - sum(map(len, kept))
    print(f"  {ranks} ranks: {left_out} disturbed steps left out, {len(disturbed)} used for want of better")
    choose = np.min if statistic == "best" else np.median
    return {
        words(c.strategy): float(choose([s.best_s if statistic == "best" else s.seconds for s in t]))
        for c, t in zip(found, kept, strict=True)
    }


def words(strategy: object) -> str:
    return " ".join(f"{n}={getattr(strategy, n)}" for n in ("tp", "pp", "dp", "micro_batch"))


def flags(folder: Path, ranks: int) -> dict[str, str]:
    return {
        "model": str(ROOT / "examples/local/small-gpt.yaml"),
        "cluster": str(folder / f"cluster-{ranks}.yaml"),
    }


def compare(folder: Path, rounds: int, statistic: str) -> None:
    errors: list[float] = []
    for ranks in RANKS:
        request = read_train_request(str(ROOT / f"examples/local/request-{ranks}.yaml"), flags(folder, ranks))
        with using(read_calibration(folder / f"calibration-{ranks}.json")):
            found = candidates(request)
            measured = measured_steps(folder, ranks, rounds, statistic)
            rows = [(words(c.strategy), c.predicted_s, measured[words(c.strategy)]) for c in found]
            tuned = tune(request, lambda s, m=measured: m[words(s)], TuneRequest())
        for name, told, seen in rows:
            errors.append(abs(told / seen - 1.0))
            shown = f"predicted {1e3 * told:8.1f} ms  measured {1e3 * seen:8.1f} ms"
            print(f"  {ranks} ranks  {name:32s} {shown} {100 * (told / seen - 1.0):+6.1f} %")
        best = min(measured.values())
        chosen, reached = rows[0], tuned["best"]["measured_s"]
        print(f"  {ranks} ranks: recommended {chosen[0]}, {100 * (chosen[2] / best - 1):.1f} % from the best")
        print(f"  {ranks} ranks: {tuned['num_runs']} runs of tune reach {100 * (reached / best - 1):.1f} %")
    print(f"all: {len(errors)} configurations, median error {100 * np.median(errors):.1f} %, "
          f"p90 {100 * np.quantile(errors, 0.9):.1f} %")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--statistic", default="median", choices=("median", "best"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--reuse", action="store_true")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} processors, load {load:.1f} before the start, statistic {given.statistic}")
    if not given.reuse:
        profile(given.folder, given.minutes)
    calibrate(given.folder, given.statistic)
    compare(given.folder, given.rounds, given.statistic)


if __name__ == "__main__":
    main()
