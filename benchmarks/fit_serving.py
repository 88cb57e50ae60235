"""Fit the correction of serving latencies, and say how it does on whole models and whole systems left out.

Run: ``python -m benchmarks.fit_serving [--write]``. Reads ``../shared/data/serving/serving_runs.csv.gz``;
with ``--write`` the coefficients of the package are replaced.
"""

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np

from costmodels.backtest_serving import ServingBacktest, backtest_serving, latency_errors
from costmodels.serving_correction import ServingCorrection, fit_serving_correction
from costmodels.serving_predict import point_kind

__all__ = ["fit_rows", "held_out", "main"]

RUNS = Path(__file__).parents[2] / "shared" / "data" / "serving" / "serving_runs.csv.gz"
TARGET = Path(__file__).parents[1] / "costmodels" / "data" / "coefficients" / "serving" / "correction.json"
_SAME = {"deepseek-r1": "deepseek-v3", "deepseek-v3.1": "deepseek-v3"}
"""Models of one architecture are left out together."""


def fit_rows(report: ServingBacktest, rows: np.ndarray) -> ServingCorrection:
    """Return the correction fitted to some rows; rows of one configuration weigh less the more there are."""
    runs = [report.runs[i] for i in rows]
    predictions = [report.predictions[i] for i in rows]
    keys = [(r.model.name, r.system, r.engine, r.decode, r.prefill is not None, r.source) for r in runs]
    counts = Counter(keys)
    return fit_serving_correction(
        [point_kind(r) for r in runs],
        loop_ttft_s=np.array([p.loop_ttft_s for p in predictions]),
        loop_tpot_s=np.array([p.loop_tpot_s for p in predictions]),
        ttft_s=np.array([r.ttft_s for r in runs], dtype=float),
        tpot_s=np.array([r.tpot_s for r in runs], dtype=float),
        weight=np.array([1.0 / max(1.0, counts[k] / 5.0) ** 0.5 for k in keys]),
    )


def held_out(report: ServingBacktest, labels: list[str]) -> list[tuple[float, float]]:
    """Return (TPOT, TTFT) of every row from a fit that did not see its label."""
    out = [(0.0, 0.0)] * len(labels)
    for label in sorted(set(labels)):
        rows = np.array([i for i, other in enumerate(labels) if other != label])
        correction = fit_rows(report, rows)
        for i in (i for i, other in enumerate(labels) if other == label):
            kind, p = point_kind(report.runs[i]), report.predictions[i]
            tpot_s = correction.tpot_s(kind, p.loop_tpot_s)
            out[i] = (tpot_s, correction.ttft_s(kind, p.loop_ttft_s, p.loop_tpot_s))
    return out


def errors_of(
    report: ServingBacktest, values: list[tuple[float, float]], rows: list[int]
) -> dict[str, float]:
    """Return the errors of (TPOT, TTFT) values over some rows, by name."""
    tpot = latency_errors([(values[i][0], report.runs[i].tpot_s) for i in rows])
    ttft = latency_errors([(values[i][1], report.runs[i].ttft_s) for i in rows])
    return {f"tpot_{k}": round(float(v or 0), 4) for k, v in tpot.items()} | {
        f"ttft_{k}": round(float(v or 0), 4) for k, v in ttft.items() if k != "num_rows"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if not RUNS.exists():
        parser.error(f"{RUNS} is absent")
    options = parser.parse_args()
    report = backtest_serving(RUNS)
    every = list(range(len(report.runs)))
    joint = [i for i in every if report.runs[i].prefill is None]
    models = [_SAME.get(r.model.name, r.model.name) for r in report.runs]
    by = {
        "whole models": held_out(report, models),
        "whole systems": held_out(report, [r.system for r in report.runs]),
    }
    found = {}
    for name, values in by.items():
        for part, rows in (("all", every), ("one instance does both", joint)):
            found[f"{name}, {part}"] = errors_of(report, values, rows)
            print(f"left out {name}, {part}: {found[f'{name}, {part}']}")
    if options.write:
        fitted = fit_rows(report, np.array(every))
        document = {
            "source": "ai-dynamo/aiconfigurator @095f58a51, systems/silicon_sample.csv (Apache-2.0), part",
            "num_samples": len(every),
            "sample_sha256": hashlib.sha256(RUNS.read_bytes()).hexdigest(),
            "held_out": found,
            "ttft": {k: [round(x, 4) for x in v] for k, v in sorted(fitted.ttft.items())},
            "tpot": {k: round(v, 4) for k, v in sorted(fitted.tpot.items())},
        }
        TARGET.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
