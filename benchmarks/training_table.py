"""The accuracy table of the README, row by row, with what earlier tools reached beside.

A module of `benchmarks.training_accuracy`. The earlier tools' figures were measured on the larger set that
these runs come from.
"""

import math
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from costmodels.accuracy import Errors
from costmodels.training.learned import MANY_DEVICES
from costmodels.training.runs import Run

Judge = Callable[[npt.NDArray[np.intp]], Errors]

ROWS = (
    ("all", "", "33.5 %, 53 %"),
    (f"{MANY_DEVICES} devices and more", "", "22.1 %, -"),
    ("vTrain, one A100 node", "vTrain-single", "38.9 %, 56.8 %"),
    ("vTrain, 64 to 512 A100s", "vTrain-multi", "19.6 %, 26.8 %"),
    ("BigScience (BLOOM layouts)", "BigScience", "26.5 %, 110.7 %"),
    ("DGX Cloud benchmarks, 8 to 2,304 H100 and GB200", "dgxc", "19.4 % (GPT-3), -"),
    ("llm-foundry (FSDP), 8 to 512 devices", "llm-foundry", "-, 18.9 %"),
    ("torchtitan", "torchtitan", "-"),
    ("Megatron-Bridge, mostly mixtures of experts on Blackwell", "Megatron-Bridge", "-"),
    ("InternEvo", "InternEvo", "-, 13.5 %"),
    ("MLPerf v3.0 to v5.1", "MLPerf", "24 to 34 %, 220 %"),
    ("Korthikanti, table 5", "Korthikanti", "4.5 %, -"),
    ("MegaScale, table 2 and figure 9", "MegaScale", "7.5 %, -"),
    ("Megatron 2020 and SC21, tables", "Megatron-SC21|MegatronLM-2020", "10.3 % (table 2), -"),
    ("Megatron-LM README, H100", "MegatronLM-README", "-"),
    ("Megatron's functional tests (deterministic)", "Megatron-golden", "-"),
)
"""Label, pattern of its sources, and the MAPE of Calculon and of llm-analysis."""


def _percent(value: float, digits: int = 1) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.{digits}f} %"


def _members(runs: list[Run], label: str, pattern: str) -> npt.NDArray[np.intp]:
    if pattern:
        return np.array([i for i, r in enumerate(runs) if re.match(pattern, r.source)], dtype=np.intp)
    least = 0 if label == "all" else MANY_DEVICES
    return np.array([i for i, r in enumerate(runs) if r.cluster.num_devices >= least], dtype=np.intp)


def readme_table(runs: list[Run], judge: Judge) -> list[str]:
    """Return the table's lines; rows without a run are left out.

    Parameters
    ----------
    judge : returns the errors of the runs at some positions.
    """
    lines = [
        "| rows | n | MAPE | median | regret | random | coverage | Calculon, llm-analysis |",
        "|" + "---|" * 8,
    ]
    for label, pattern, earlier in ROWS:
        rows = _members(runs, label, pattern)
        if len(rows):
            e = judge(rows)
            cells = (
                label,
                str(e.num_rows),
                _percent(e.mape_frac),
                _percent(e.median_ape_frac),
                _percent(e.regret_mean_frac, 2),
                _percent(e.random_regret_frac),
                f"{e.interval_coverage_frac:.2f}",
                earlier,
            )
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def readme_ways(ways: dict[str, tuple[Errors, str]]) -> list[str]:
    """Return the lines of the table of other ways to predict the same runs, with a remark on each."""
    count = next(iter(ways.values()))[0].num_rows
    lines = [f"| the same {count} rows otherwise | MAPE | regret | coverage |", "|" + "---|" * 4]
    for label, (e, remark) in ways.items():
        mape = _percent(e.mape_frac) + (f" ({remark})" if remark else "")
        regret = _percent(e.regret_mean_frac)
        lines.append(f"| {label} | {mape} | {regret} | {e.interval_coverage_frac:.2f} |")
    return lines
