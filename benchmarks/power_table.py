"""Print the power figures beside the published ones.

    python -m benchmarks.power_table [--data ../shared/data] [--only row,caps,matmul,frontier,serving]

Held out: one network for caps, whole weight shapes (n, k) for matrix products, whole models for serving. The
row is simulated: 40 servers calibrated to the published peak of 79 %, five seeds, one day each. Tables that
are not there are named and skipped; the row needs none.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np

from benchmarks.fit_power import (
    MACHINES,
    held_out_caps,
    held_out_matmul,
    held_out_serving,
    meter_noise,
    model_folds,
)
from benchmarks.power_samples import cap_samples, matmul_samples, serving_samples
from costmodels.training.pipeline_orders import Schedule
from planner.power.pipeline import pipeline_problem
from planner.power.request import RowSection
from planner.power.rows import row_choices
from solvers.time_energy import ClockCurve, fastest_s, frontier, round_clocks

MATMUL_ANCHORS = {"h200-vllm": (7.7, 6), "b200-trtllm": (6.8, 6), "gb200-trtllm": (9.1, 8)}


def line(figure, anchor, reach, ours):
    print(f"{figure:<58} | anchor {anchor:<28} | to reach {reach:<26} | ours {ours}", flush=True)


def row(_data):
    settings = RowSection().settings()
    for c in row_choices(settings, (50, 52, 53, 54, 55, 56)):
        line(
            f"row of 40, now {c.num_servers} servers (+{(c.num_servers / 40 - 1) * 100:.1f} %), 5 seeds",
            "+30 % (POLCA); +32.5 % brakes",
            ">= +30 %, 0 brakes, P50 < 1 %",
            f"{c.num_brakes} brakes, peak {c.peak_frac:.3f}, high P50 {100 * c.high_p50_frac:+.2f} %, "
            f"low P50 {100 * c.low_p50_frac:+.1f} %, thresholds {c.policy.thresholds}"
            f"{'' if c.safe else '  <- beyond the knee'}",
        )


def caps(data):
    samples = cap_samples(data / "power" / "zeus_powercap_time_power.csv.gz")
    error = np.abs(held_out_caps(samples, samples.network) / samples.throughput_frac - 1)
    line(
        "cap -> throughput, network left out",
        "5.8 % physics, 7.1 % trees",
        "<= 5.0 %",
        f"{100 * error.mean():.2f} %",
    )


def matmul(data):
    for source in MACHINES:
        samples, _ = matmul_samples(data, source)
        error = np.abs(held_out_matmul(samples, source) / samples.power_w - 1)
        scatter, there, num_alike = meter_noise(samples, error)["all"]
        anchor, reach = MATMUL_ANCHORS[source]
        line(
            f"draw of matrix products, unseen shapes, {source}",
            f"{anchor} % (all rows of the source)",
            f"<= {reach} %",
            f"{100 * error.mean():.2f} % mean, {100 * np.median(error):.2f} % median ({len(error)} rows); "
            f"{num_alike} alike readings scatter by {100 * scatter:.1f} %, error there {100 * there:.1f} %",
        )


def published_instance(path, name="8x32"):
    """Return the problem of one instance of the clock table."""
    curves, blocked = {}, 0.0
    with path.open(encoding="utf-8", newline="") as file:
        for r in csv.DictReader(file):
            if r["instance"] == name:
                blocked = float(r["blocked_power_w"])
                point = float(r["time_s"]), (float(r["power_w"]) - blocked) * float(r["time_s"])
                curves.setdefault((int(r["stage"]), r["op"]), []).append(point)
    stages, batches = (int(x) for x in name.split("x"))
    by_stage = [
        tuple(
            ClockCurve(time_s=np.array(curves[s, op])[:, 0], energy_j=np.array(curves[s, op])[:, 1])
            for op in ("forward", "backward")
        )
        for s in range(stages)
    ]
    return pipeline_problem(by_stage, batches, blocked_w=blocked, schedule=Schedule.ONE_F_ONE_B)


def clocks(data):
    path = data / "power" / "pipeline_clock_instances.csv"
    for static in (False, True):
        problem = published_instance(path)
        if static:
            from planner.power.pipeline import static_clocks

            problem = static_clocks(problem)
        started = time.perf_counter()
        fast = fastest_s(problem)
        slower = (1.0, 1.02, 1.05, 1.1, 1.2)
        points = [o.unwrap() for o in frontier(problem, [fast * x for x in slower])]
        wall_s = time.perf_counter() - started
        at_full = sum(float(problem.curves[c].hull()[1][0]) for c in problem.curve) + problem.blocked_w * fast
        saved = [100 * (1 - p.energy_j / at_full) for p in points]
        whole = [100 * (1 - round_clocks(problem, p)[1].energy_j / at_full) for p in points]
        line(
            f"frontier 8x32, 5 deadlines, {'one clock per stage' if static else 'clock per operation'}",
            "171 s (lowtime), 7.3 s (LP)",
            "<= 3 s, >= 20.8 % at iso-time",
            f"{wall_s:.2f} s, saving {', '.join(f'{s:.2f}' for s in saved)} % "
            f"(whole clocks {', '.join(f'{s:.2f}' for s in whole)} %)",
        )


def serving(data):
    runs, watts, rate, model = serving_samples(data / "power" / "mlenergy_leaderboard_v3.csv.gz")
    predicted_w, predicted_j = held_out_serving(runs, watts, rate, model_folds(model))
    joules = watts * runs.num_devices / rate
    error_w, error_j = np.abs(predicted_w / watts - 1), np.abs(predicted_j / joules - 1)
    line(
        "joules per token, whole models held out",
        "51 % mean, 23 % median",
        "<= 25 % mean, <= 15 % median",
        f"{100 * error_j.mean():.1f} % mean, {100 * np.median(error_j):.1f} % median",
    )
    line(
        "watts per GPU, whole models held out",
        "11.5 %",
        "<= 10 %",
        f"{100 * error_w.mean():.1f} % mean, {100 * np.median(error_w):.1f} % median",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", default="row,caps,matmul,frontier,serving")
    args = parser.parse_args()
    parts = {"row": row, "caps": caps, "matmul": matmul, "frontier": clocks, "serving": serving}
    for name in args.only.split(","):
        if name != "row" and not args.data.is_dir():
            print(f"{name}: skipped, {args.data} is not here")
            continue
        parts[name](args.data)


if __name__ == "__main__":
    main()
