"""nccl-tests (and rccl-tests): who took part, and time and bandwidth by message size."""

import re
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from hardware.errors import SpecError

__all__ = ["CollectiveRun", "CollectiveSample", "import_nccl_tests", "samples_text"]

_OPS = ("all_reduce", "all_gather", "reduce_scatter", "alltoall", "broadcast", "sendrecv", "reduce")
_USUAL_PLACE_OF_TIME = 5
"""Behind size, count, type, redop and root."""
_ROUNDED = 0.05
"""How far the printed figures may be off by rounding."""
_RANK = re.compile(r"#\s+Rank\s+\d+.*?\bon\s+(\S+)\s+device\s+(\d+)\s+\[[^\]]*\]\s+(.*?)\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveSample:
    """One line of the table, out of place."""

    message_bytes: float
    time_s: float
    bus_bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveRun:
    """One run of one test program."""

    source: str
    op: str
    hosts: tuple[str, ...]
    device_label: str
    """As the driver names it, for example "NVIDIA H100 80GB HBM3"; "" where the run does not say."""
    num_devices: int
    samples: tuple[CollectiveSample, ...]

    @property
    def peak_bus_bytes_per_s(self) -> float:
        """Largest bus bandwidth of any size."""
        return max(sample.bus_bytes_per_s for sample in self.samples)


def import_nccl_tests(paths: list[Path]) -> tuple[CollectiveRun, ...]:
    """Return the runs in several outputs, in order.

    Raises
    ------
    SpecError
        naming the file without ranks or table, and lines with a time or rate that is not positive.
    """
    return tuple(_read(path) for path in paths)


def _read(path: Path) -> CollectiveRun:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(str(path), [f"cannot be read ({error})"]) from None
    ranks = [found.groups() for found in map(_RANK.match, lines) if found]
    op = next((name for name in _OPS for line in [path.name, *lines[:30]] if f"{name}_perf" in line), "")
    problems, samples, reduces = [], [], False
    place = _place_of_time(lines)
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if len(cells) < 8 or not cells[0].isdigit() or not cells[1].isdigit():
            continue
        try:
            time_us, algbw, busbw = (float(cell) for cell in cells[place : place + 3])
        except ValueError:
            found = " ".join(cells[place : place + 3])
            problems.append(f"line {number}: expected time, algbw and busbw, found {found!r}")
            continue
        if int(cells[0]) > 0 and not (min(time_us, algbw, busbw) > 0 and isfinite(time_us + algbw + busbw)):
            numbers = [time_us, algbw, busbw]
            problems.append(f"line {number}: time and bandwidth must be positive, found {numbers}")
        elif int(cells[0]) > 0:
            sample = CollectiveSample(
                message_bytes=float(cells[0]), time_s=time_us * 1e-6, bus_bytes_per_s=busbw * 1e9
            )
            samples.append(sample)
            reduces = reduces or "sum" in cells
    if not ranks:
        problems.append("no line '# Rank ... on HOST device N' found; is this the output of nccl-tests?")
    if not samples and not problems:
        problems.append("no line with size, time and bandwidth found")
    op = op or _summed(samples, reduces, len(ranks))
    if not op and not problems:
        named = ", ".join(f"{name}_perf" for name in _OPS)
        problems.append(f"nothing says which collective this is; put one of {named} into the file's name")
    if problems:
        raise SpecError(str(path), problems)
    return CollectiveRun(
        source=path.name,
        op=op,
        hosts=tuple(dict.fromkeys(host for host, _, _ in ranks)),
        device_label=ranks[0][2],
        num_devices=len(ranks),
        samples=tuple(samples),
    )


def _summed(samples: list[CollectiveSample], reduces: bool, num_ranks: int) -> str:
    """Return which reduction a run was, by what bus bandwidth counts per byte; "" for none of them."""
    if not reduces or not samples or num_ranks < 2:
        return ""
    largest = max(samples, key=lambda sample: sample.message_bytes)
    counted = largest.bus_bytes_per_s * largest.time_s / largest.message_bytes
    ring = (num_ranks - 1) / num_ranks
    for op, rounds in (("all_reduce", 2.0), ("reduce_scatter", 1.0)):
        if abs(counted / (rounds * ring) - 1.0) < _ROUNDED:
            return op
    return ""


def _place_of_time(lines: list[str]) -> int:
    """Return the column of the out-of-place time; times of ten milliseconds and more have no decimals."""
    for line in lines:
        names = line.removeprefix("#").split()
        if names[:2] == ["size", "count"] and "time" in names:
            return names.index("time")
    return _USUAL_PLACE_OF_TIME


def samples_text(runs: tuple[CollectiveRun, ...]) -> str:
    """Return the runs as CSV, one line per message size."""
    lines = ["collective,num_devices,num_nodes,message_bytes,time_s,bus_bytes_per_s,source"]
    for run in runs:
        shape = f"{run.op},{run.num_devices},{len(run.hosts)}"
        lines += [
            f"{shape},{s.message_bytes:.0f},{s.time_s:.9g},{s.bus_bytes_per_s:.9g},{run.source}"
            for s in run.samples
        ]
    return "\n".join([*lines, ""])
