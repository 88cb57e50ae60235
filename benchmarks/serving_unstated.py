"""What the table of split deployments leaves out, and how far that alone limits any prediction.

Most rows state neither worker counts nor whether the engine drafted. Three statements about the data: errors
where counts are stated and where not; rows whose inputs equal another row's but whose answer differs, with
the error of the best single answer to each input; how much the unstated count moves a prediction.
"""

import csv
import gzip
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from costmodels.backtest.serving import ServingBacktest
from costmodels.serving.predict import predict_run

__all__ = ["print_unstated"]

_NO_INPUTS = ("id", "silicon_ttft_ms", "silicon_tpot_ms", "source_tag")
_DRAFTED_RATIO = 1.6
"""Modelled over measured TPOT above which a row has drafted by all signs: accepted drafts halve TPOT."""
_SAMPLE = 10
"""Every so-manieth row is predicted under other worker counts."""


def print_unstated(path: Path, report: ServingBacktest) -> None:
    """Print the statements about the split rows of a backtest."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    split = [i for i, run in enumerate(report.runs) if rows[run.row_id]["mode"] == "disagg"]
    stated = [i for i in split if rows[report.runs[i].row_id]["decode_num_workers"]]
    unstated = [i for i in split if not rows[report.runs[i].row_id]["decode_num_workers"]]
    for name, chosen in (("stated", stated), ("not stated", unstated)):
        print(f"split, worker counts {name}: {len(chosen)} rows, {_errors(report, chosen)}")
        fast = np.mean([_loop_ratio(report, i) > _DRAFTED_RATIO for i in chosen])
        print(f"  faster than 1/{_DRAFTED_RATIO} of the model without drafts: {100 * fast:.0f} % of them")
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i in split:
        groups[_inputs(rows[report.runs[i].row_id])].append(i)
    several = [g for g in groups.values() if len({report.runs[i].tpot_s for i in g}) > 1]
    alike = [i for group in several for i in group]
    best = {
        kind: [_best_error([getattr(report.runs[i], f"{kind}_s") for i in g]) for g in several]
        for kind in ("tpot", "ttft")
    }
    shares = np.array([len(g) for g in several], dtype=float)
    told = ", ".join(
        f"{kind.upper()} {100 * np.average(errors, weights=shares):.1f} %" for kind, errors in best.items()
    )
    print(f"split, inputs of another row with another answer: {len(alike)} rows, {_errors(report, alike)}")
    print(f"  MAPE of the best single answer to each input, found from the answers: {told}")
    print(
        f"  the unstated count alone, over counts that like rows state: {_count_spread(report, rows, split)}"
    )


def _errors(report: ServingBacktest, chosen: Sequence[int]) -> str:
    errors = report.errors(chosen)
    parts = []
    for kind, found in errors.items():
        mape, median = (100 * float(found[k] or 0.0) for k in ("mape_frac", "median_ape_frac"))
        parts.append(f"{kind.upper()} {mape:.1f} / {median:.1f} %")
    return ", ".join(parts)


def _loop_ratio(report: ServingBacktest, i: int) -> float:
    measured = report.runs[i].tpot_s
    return report.predictions[i].loop_tpot_s / measured if measured else 0.0


def _inputs(row: dict[str, str]) -> tuple[str, ...]:
    clients = re.search(r"silicon_concurrency=(\d+)", row["source_tag"])
    named = (value for name, value in row.items() if name not in _NO_INPUTS)
    return (*named, clients.group(1) if clients else "")


def _best_error(measured: Sequence[float | None]) -> float:
    values = np.array([m for m in measured if m], dtype=float)
    return float(np.abs(values[:, None] / values[None, :] - 1.0).mean(axis=1).min()) if len(values) else 0.0


def _count_spread(report: ServingBacktest, rows: dict[str, dict[str, str]], split: Sequence[int]) -> str:
    """Return the median ratio of the largest to the smallest prediction over the counts of like rows."""
    counts: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for i in split:
        run = report.runs[i]
        if rows[run.row_id]["decode_num_workers"]:
            counts[_family(report, i)].add(run.num_decode)
    ratios = []
    for i in split:
        tried = counts.get(_family(report, i), set())
        if len(tried) > 1 and not rows[report.runs[i].row_id]["decode_num_workers"]:
            ratios.append((i, tried))
    found = []
    for i, tried in ratios[::_SAMPLE]:
        seen = [predict_run(replace(report.runs[i], num_decode=n)) for n in sorted(tried)]
        found.append([max(v) / min(v) for v in ([p.tpot_s for p in seen], [p.ttft_s for p in seen])])
    tpot, ttft = np.median(found, axis=0) if found else (1.0, 1.0)
    return (
        f"TPOT by a factor of {tpot:.2f}, TTFT of {ttft:.2f} (median of {len(found)} of {len(ratios)} rows)"
    )


def _family(report: ServingBacktest, i: int) -> tuple[object, ...]:
    run = report.runs[i]
    return run.engine, run.system, run.decode.experts, run.decode.num_devices, run.decode.dp > 1
