"""Fit the factors of serving engines and the correction of serving latencies, and say how they do held out.

Run: ``python -m benchmarks.fit_serving [--write]``. Reads ``../shared/data/serving/serving_runs.csv.gz``;
with ``--write`` the coefficients of the package are replaced. About five minutes of one core.

Held out means both: for whole models, and whole systems, left out in turn, the engines' factors and the
correction are fitted to the other rows alone, and the loops of the left-out rows are run with them.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving_fit import Effects, LoopPoint, fit_effects, fitted_engine, point_weights
from costmodels.backtest.serving import latency_errors
from costmodels.serving.correction import LoopLatency, ServingCorrection, fit_serving_correction
from costmodels.serving.predict import loop_latency, point_kind
from costmodels.serving.runs import ServingRun, read_serving_runs

__all__ = ["main"]

RUNS = Path(__file__).parents[2] / "shared" / "data" / "serving" / "serving_runs.csv.gz"
FOLDER = Path(__file__).parents[1] / "costmodels" / "data" / "coefficients" / "serving"
SOURCE = "ai-dynamo/aiconfigurator @095f58a51, systems/silicon_sample.csv (Apache-2.0), part"
ENGINES = ("vllm", "sglang", "trtllm")
_SAME = {"deepseek-r1": "deepseek-v3", "deepseek-v3.1": "deepseek-v3"}
"""Models of one architecture are left out together."""


class Study:
    """All rows, each configuration's raw times once."""

    def __init__(self, runs: Sequence[ServingRun]) -> None:
        self.runs = list(runs)
        self.kinds = [point_kind(r) for r in runs]
        self.ttft_s = np.array([r.ttft_s for r in runs], dtype=float)
        self.tpot_s = np.array([r.tpot_s for r in runs], dtype=float)
        self.weight = point_weights(runs)
        self.joint = np.array([r.prefill is None for r in runs])
        found: dict[str, int] = {}
        self.points: list[LoopPoint] = []
        self.at = np.zeros(len(self.runs), dtype=int)
        for i, run in enumerate(self.runs):
            key = repr((
                run.model.name, run.system, run.engine, run.source, run.decode, run.prefill, run.num_decode,
                run.num_prefill, run.prompt_tokens, run.output_tokens, run.concurrency,
            ))  # fmt: skip
            if key not in found:
                found[key] = len(self.points)
                self.points.append(LoopPoint(run))
            self.at[i] = found[key]
        used = sorted({int(u) for u in self.at[self.joint]})
        self.joint_points = [self.points[u] for u in used]
        self.joint_at = np.searchsorted(used, self.at)
        self.linear: Any = None

    def effects(self, rows: np.ndarray) -> Effects:
        """Return the effects fitted to the rows among `rows` whose instances do both."""
        chosen = rows[self.joint[rows]]
        effects, linear = fit_effects(
            self.joint_points,
            self.joint_at[chosen],
            ttft_s=self.ttft_s[chosen],
            tpot_s=self.tpot_s[chosen],
            weight=self.weight[chosen],
            linear=self.linear,
        )
        self.linear = self.linear or linear
        return effects

    def loops(self, effects: Effects, rows: np.ndarray) -> dict[int, LoopLatency]:
        """Return what the loops of `rows` saw, by row."""
        points = sorted({int(u) for u in self.at[rows]})
        found = {u: loop_latency(self.points[u].loop(*effects.of(self.points[u]))) for u in points}
        return {int(i): found[int(self.at[i])] for i in rows}

    def correction(self, loops: dict[int, LoopLatency], rows: np.ndarray) -> ServingCorrection:
        """Return the correction fitted to `rows`."""
        return fit_serving_correction(
            [self.kinds[i] for i in rows],
            [loops[i] for i in rows.tolist()],
            ttft_s=self.ttft_s[rows],
            tpot_s=self.tpot_s[rows],
            weight=self.weight[rows],
        )

    def predictions(self, fit_rows: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return (TPOT, TTFT) of `rows` from fits to `fit_rows`. shape (rows, 2)"""
        effects = self.effects(fit_rows)
        loops = self.loops(effects, np.union1d(fit_rows, rows))
        correction = self.correction(loops, fit_rows)
        return np.array(
            [
                (
                    correction.tpot_s(self.kinds[i], loops[i].tpot_s),
                    correction.ttft_s(self.kinds[i], loops[i]),
                )
                for i in rows.tolist()
            ]
        )

    def held_out(self, labels: list[str]) -> np.ndarray:
        """Return (TPOT, TTFT) of every row from fits that did not see its label."""
        names, every = np.array(labels), np.arange(len(self.runs))
        out = np.zeros((len(self.runs), 2))
        for name in sorted(set(labels)):
            out[names == name] = self.predictions(every[names != name], every[names == name])
        return out

    def errors(self, values: np.ndarray, rows: np.ndarray) -> dict[str, float]:
        """Return the errors of (TPOT, TTFT) values over some rows, by name."""
        found: dict[str, float] = {"num_rows": int(rows.sum())}
        for j, name in enumerate(("tpot", "ttft")):
            measured = (self.tpot_s, self.ttft_s)[j]
            pairs = list(zip(values[rows, j].tolist(), measured[rows].tolist(), strict=True))
            errors = latency_errors(pairs)
            found |= {f"{name}_{k}": round(float(v or 0), 4) for k, v in errors.items() if k != "num_rows"}
        return found


def write(study: Study, effects: Effects, correction: ServingCorrection, held_out: dict[str, Any]) -> None:
    """Replace the coefficients of the package."""
    provenance = {
        "source": SOURCE,
        "num_samples": len(study.runs),
        "sample_sha256": hashlib.sha256(RUNS.read_bytes()).hexdigest(),
        "held_out": held_out,
    }
    path = FOLDER / "engines.json"
    document = json.loads(path.read_text("utf-8"))
    formats = sorted({p.groups["format"] for p in study.joint_points})
    for name in ENGINES:
        fitted = asdict(fitted_engine(effects, name, formats))
        for key in ("decode", "prefill", "expert_formats", "host_s", "host_per_seq_s"):
            document["engines"][name][key] = _rounded(fitted[key])
    document["source"][", ".join(ENGINES)] = provenance
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    parts = {"ttft": correction.ttft, "tpot": correction.tpot, "ttft_scale": correction.ttft_scale}
    text = json.dumps(provenance | {k: _rounded(dict(sorted(v.items()))) for k, v in parts.items()}, indent=1)
    (FOLDER / "correction.json").write_text(text + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return float(f"{value:.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if not RUNS.exists():
        parser.error(f"{RUNS} is absent")
    options = parser.parse_args()
    study = Study([r for r in read_serving_runs(RUNS)[0] if r.ttft_s and r.tpot_s])
    every = np.arange(len(study.runs))
    effects = study.effects(every)
    models = [_SAME.get(r.model.name, r.model.name) for r in study.runs]
    values = {
        "nothing": study.predictions(every, every),
        "whole models": study.held_out(models),
        "whole systems": study.held_out([r.system for r in study.runs]),
    }
    found = {}
    for name, predicted in values.items():
        parts = {"all": every >= 0, "joint": study.joint, "split": ~study.joint}
        for part, rows in parts.items():
            found[f"{name}, {part}"] = study.errors(predicted, rows)
            print(f"left out {name}, {part}: {found[f'{name}, {part}']}", flush=True)
    if options.write:
        write(study, effects, study.correction(study.loops(effects, every), every), found)


if __name__ == "__main__":
    main()
