"""Request-size buckets from a trace, a histogram, a named distribution or one fixed size."""

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from costmodels.job import Traffic
from costmodels.traces import Trace, opened_csv, read_trace
from hardware.errors import InputError, SpecError, UnknownNameError

__all__ = ["NAMED_DISTRIBUTIONS", "Buckets", "NamedDistribution", "Workload", "bucketise", "read_workload"]

Floats = npt.NDArray[np.float64]

_LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
_EDGES = tuple(level for level in _LEVELS if level != 0.999)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedDistribution:
    """Lengths of a published trace, prompts and answers taken as independent, and how its arrivals vary."""

    prompt_tokens: tuple[int, ...]
    """At the quantiles `_LEVELS`, of which the last is the longest."""
    output_tokens: tuple[int, ...]
    arrival_cv: float

    def sizes(self) -> list[tuple[int, int, float]]:
        """Return (prompt, output, share) at the middle of each range of quantiles, tails in small ranges."""
        prompts, outputs = _middles(self.prompt_tokens), _middles(self.output_tokens)
        return [(p, o, mine * its) for p, mine in prompts for o, its in outputs]


NAMED_DISTRIBUTIONS = {
    "azure-conv": NamedDistribution(
        prompt_tokens=(
            *(2, 181, 207, 387, 403, 703, 1020, 1071, 1130, 1315, 2734),
            *(4083, 4098, 4142, 6179, 14050),
        ),
        output_tokens=(7, 41, 54, 77, 91, 103, 129, 177, 384, 400, 424, 451, 540, 601, 954, 1000),
        arrival_cv=1.09,
    ),
    "azure-code": NamedDistribution(
        prompt_tokens=(
            *(3, 75, 147, 386, 770, 1075, 1469, 1909, 2433, 3192, 5188),
            *(7303, 7436, 7436, 7437, 7437),
        ),
        output_tokens=(6, 6, 7, 8, 9, 11, 13, 16, 20, 29, 55, 90, 171, 251, 825, 1899),
        arrival_cv=13.2,
    ),
}
"""Of the Azure LLM inference traces of November 2023 (CC-BY-4.0), 19,366 and 8,819 requests."""

_PROMPT_EDGES = (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, math.inf)
_OUTPUT_EDGES = (0, 32, 128, 256, 512, 1024, 2048, 4096, math.inf)
_FIXED = re.compile(r"fixed:(\d+)x(\d+)$")
_HISTOGRAM = ("prompt_tokens", "output_tokens", "share_frac")
_MIN_SHARE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Traffic, and the trace it comes from where there is one."""

    traffic: Traffic
    trace: Trace | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Buckets:
    """Request sizes as columns; each stands for the sizes inside its edges."""

    names: tuple[str, ...]
    prompt_tokens: Floats
    """Mean of the bucket."""
    output_tokens: Floats
    rate_per_s: Floats
    prompt_up_to: Floats
    """Upper edge; infinite for the last."""
    output_up_to: Floats
    late: tuple[str, ...] = ()
    """Names of those whose requests may miss the latency targets: the percentile leaves room for them."""

    @property
    def late_frac(self) -> float:
        """Share of requests that may be late."""
        return float(self.rate_per_s[np.isin(self.names, self.late)].sum() / self.rate_per_s.sum())


def read_workload(text: str, *, rate_per_s: float | None, percentile: float = 99.0) -> Workload:
    """Return the workload that `text` names, at `rate_per_s` where that is given.

    Raises
    ------
    SpecError, InputError, UnknownNameError
        naming what is wrong and what is accepted.
    """
    fixed = _FIXED.match(text)
    if fixed:
        sizes = [(int(fixed.group(1)), int(fixed.group(2)), 1.0)]
        return Workload(traffic=_traffic(text, sizes, rate_per_s, 1.0))
    if text in NAMED_DISTRIBUTIONS:
        named = NAMED_DISTRIBUTIONS[text]
        return Workload(traffic=_traffic(text, named.sizes(), rate_per_s, named.arrival_cv))
    path = Path(text)
    if path.suffix not in {".csv", ".gz"} and not path.exists():
        known = (*NAMED_DISTRIBUTIONS, "fixed:1024x256", "a trace or histogram CSV")
        raise UnknownNameError("workload", text, known)
    if path.suffix == ".csv" and path.exists() and "share_frac" in _header(path):
        return Workload(traffic=_traffic(text, _read_histogram(path), rate_per_s, 1.0))
    trace = read_trace(path)
    if rate_per_s is not None:
        trace = trace.scaled(rate_per_s)
    if not math.isfinite(trace.rate_per_s) or trace.rate_per_s <= 0:
        message = f"{path}: all requests arrive at once; give the rate with rate_per_s"
        raise InputError(message)
    return Workload(traffic=trace.traffic(), trace=trace)


def bucketise(traffic: Traffic) -> Buckets:
    """Return the sizes of `traffic` joined on a grid; empty buckets are left out."""
    prompt = np.array(traffic.prompt_tokens, dtype=float)
    output = np.array(traffic.output_tokens, dtype=float)
    share = np.array(traffic.share_frac)
    rows = np.searchsorted(_PROMPT_EDGES, prompt, side="left")
    columns = np.searchsorted(_OUTPUT_EDGES, output, side="left")
    cells = sorted({(int(r), int(c)) for r, c, s in zip(rows, columns, share, strict=True) if s > _MIN_SHARE})
    weight = [np.where((rows == r) & (columns == c), share, 0.0) for r, c in cells]
    total = np.array([w.sum() for w in weight])
    return Buckets(
        names=tuple(f"{_edge(_PROMPT_EDGES[r])}/{_edge(_OUTPUT_EDGES[c])}" for r, c in cells),
        prompt_tokens=np.array([float(w @ prompt) for w in weight]) / total,
        output_tokens=np.array([float(w @ output) for w in weight]) / total,
        rate_per_s=traffic.rate_per_s * total / total.sum(),
        prompt_up_to=np.array([_PROMPT_EDGES[r] for r, _ in cells]),
        output_up_to=np.array([_OUTPUT_EDGES[c] for _, c in cells]),
    )


def _edge(value: float) -> str:
    return "more" if math.isinf(value) else f"{value:g}"


def _middles(quantiles: tuple[int, ...]) -> list[tuple[int, float]]:
    """Return (length, share) of each range of quantiles, the logarithm of the length even between two."""
    edges = np.array(_EDGES)
    lengths = np.exp(np.interp((edges[1:] + edges[:-1]) / 2.0, _LEVELS, np.log(quantiles)))
    return list(zip(np.rint(lengths).astype(int).tolist(), np.diff(edges).tolist(), strict=True))


def _traffic(name: str, sizes: list[tuple[int, int, float]], rate_per_s: float | None, cv: float) -> Traffic:
    if rate_per_s is None:
        message = f"workload {name} has no arrivals: rate_per_s (requests per second) is needed"
        raise InputError(message)
    total = sum(s for _, _, s in sizes)
    try:
        return Traffic(
            rate_per_s=rate_per_s,
            prompt_tokens=tuple(p for p, _, _ in sizes),
            output_tokens=tuple(o for _, o, _ in sizes),
            share_frac=tuple(s / total for _, _, s in sizes),
            arrival_cv=cv,
        )
    except ValueError as error:
        raise SpecError(name, [str(error)]) from None


def _header(path: Path) -> list[str]:
    with opened_csv(path) as file:
        return [name.strip() for name in next(csv.reader(file), [])]


def _read_histogram(path: Path) -> list[tuple[int, int, float]]:
    """Return (prompt, output, share) rows; a row without share is an empty bucket and is refused."""
    header = _header(path)
    missing = [name for name in _HISTOGRAM if name not in header]
    if missing:
        raise SpecError(str(path), [f"column {name} is missing" for name in missing])
    sizes: list[tuple[int, int, float]] = []
    problems: list[str] = []
    with opened_csv(path) as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                prompt, output, share = (
                    int(row["prompt_tokens"]),
                    int(row["output_tokens"]),
                    float(row["share_frac"]),
                )
            except (TypeError, ValueError):
                problems.append(f"line {line}: {dict(row)} holds no two whole numbers and a share")
                continue
            if prompt < 1 or output < 1:
                problems.append(f"line {line}: prompt_tokens and output_tokens must be at least 1")
            if not 0.0 < share < math.inf:
                problems.append(f"line {line}: share_frac: {share:g} is an empty bucket; leave it out")
            sizes.append((prompt, output, share))
    if not sizes and not problems:
        problems.append("no buckets: the file holds a header only")
    if problems:
        raise SpecError(str(path), problems[:10])
    return sizes
