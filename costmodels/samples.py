"""Samples: what was measured, at which shape, on which device, how often and how steadily; their file format.

A samples file is CSV, one line per measured shape, so that several can be joined and a run that was cut off
keeps all that it had. `shape` holds the shape's numbers as ``m=128 n=256 k=64``.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any

from hardware.errors import SpecError

__all__ = ["COLUMNS", "KINDS", "Sample", "SampleFile", "lines", "read_samples", "sample_line"]

KINDS: dict[str, tuple[str, ...]] = {
    "matmul": ("m", "n", "k"),
    "attention_forward": ("batch", "q_len", "heads", "kv_heads", "head_dim"),
    "attention_backward": ("batch", "q_len", "heads", "kv_heads", "head_dim"),
    "copy": ("num_bytes",),
    "elementwise": ("num_bytes",),
    "norm": ("num_bytes",),
    "optimizer": ("num_params",),
    "launch": (),
    "all_reduce": ("message_bytes", "stride", "degree"),
    "all_gather": ("message_bytes", "stride", "degree"),
    "reduce_scatter": ("message_bytes", "stride", "degree"),
    "all_to_all": ("message_bytes", "stride", "degree"),
    "broadcast": ("message_bytes", "stride", "degree"),
    "p2p": ("message_bytes", "stride", "degree"),
    "host_to_device": ("num_bytes",),
    "device_to_host": ("num_bytes",),
    "nvme_write": ("num_bytes",),
    "nvme_read": ("num_bytes",),
    "step": (
        "hidden", "ffn_hidden", "num_layers", "num_heads", "vocab", "seq_len", "global_batch", "tp", "pp",
        "dp", "micro_batch",
    ),
}  # fmt: skip
"""Every kind of sample and the numbers that its shape must have."""

_TEXTS = ("kind", "dtype", "device", "backend", "software", "date", "error")
_COUNTS = ("num_ranks", "num_repeats", "num_rejected")
_MOST_OTHERS_FRAC = 0.1
_MOST_SLOWDOWN_FRAC = 0.15
"""What a measurement on a host's processors bears (assumed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured shape."""

    kind: str
    shape: tuple[tuple[str, float], ...]
    dtype: str = "fp32"
    num_ranks: int = 1
    """Processes that measured at the same time."""
    seconds: float = float("nan")
    """Median of the repeats that were kept."""
    best_s: float = float("nan")
    """Shortest repeat: what the machine does while nobody else uses it."""
    spread_frac: float = 0.0
    """90th less 10th percentile of the repeats over their median."""
    num_repeats: int = 1
    num_rejected: int = 0
    """Repeats left out as interrupted."""
    device: str = ""
    backend: str = ""
    software: str = ""
    date: str = ""
    clock_hz: float = float("nan")
    temperature_c: float = float("nan")
    power_w: float = float("nan")
    others_frac: float = float("nan")
    """Share of the host's processors that other programs used meanwhile."""
    slowdown_frac: float = float("nan")
    """How much slower a fixed reference kernel ran just before or after than at its best in the run."""
    error: str = ""
    """Why there is no time; empty where there is one."""

    @property
    def disturbance(self) -> float:
        """Return how much others used the machine over what the measurement bears; 0 where that is not known.

        Examples
        --------
        >>> Sample(kind="launch", shape=(), others_frac=0.3, slowdown_frac=0.03).disturbance
        3.0
        """
        parts = (self.others_frac / _MOST_OTHERS_FRAC, self.slowdown_frac / _MOST_SLOWDOWN_FRAC)
        return round(max((p for p in parts if isfinite(p)), default=0.0), 6)

    @property
    def at(self) -> dict[str, float]:
        """Return the shape by name."""
        return dict(self.shape)

    @property
    def key(self) -> tuple[str, tuple[tuple[str, float], ...], str, int]:
        """Return what makes two samples measurements of the same thing."""
        return self.kind, self.shape, self.dtype, self.num_ranks


COLUMNS = tuple(f.name for f in fields(Sample))


def sample_line(sample: Sample | None) -> str:
    """Return the line of one sample, or the header for None."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if sample is None:
        writer.writerow(COLUMNS)
        return out.getvalue()
    cells = []
    for name in COLUMNS:
        value = getattr(sample, name)
        if name == "shape":
            cells.append(" ".join(f"{k}={v:.12g}" for k, v in value))
        else:
            cells.append(f"{value:.6g}" if isinstance(value, float) else str(value))
    writer.writerow(cells)
    return out.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFile:
    """What a samples file holds."""

    path: Path
    samples: tuple[Sample, ...]
    """Lines with a time."""
    failed: tuple[Sample, ...] = ()
    """Lines that say why there is no time."""
    notes: tuple[str, ...] = field(default=())
    """What had to be left out, and why."""
    whole_bytes: int = 0
    """Length of the file up to the end of its last complete line."""


def _shape(text: str, kind: str) -> tuple[tuple[str, float], ...]:
    pairs = tuple((k, float(v)) for k, _, v in (item.partition("=") for item in text.split()))
    missing = [name for name in KINDS[kind] if name not in dict(pairs)]
    if missing:
        message = f"shape {text!r} misses {', '.join(missing)}"
        raise ValueError(message)
    return pairs


def _parsed(cells: dict[str, str]) -> Sample:
    kind = cells["kind"]
    if kind not in KINDS:
        message = f"kind {kind!r} is none of {', '.join(KINDS)}"
        raise ValueError(message)
    values: dict[str, Any] = {}
    for name in COLUMNS:
        text = cells.get(name, "")
        if name == "shape":
            values[name] = _shape(text, kind)
        elif name in _TEXTS:
            values[name] = text
        elif name in _COUNTS:
            values[name] = int(text or 0)
        else:
            values[name] = float(text or "nan")
    return Sample(**values)


def read_samples(path: Path | str) -> SampleFile:
    """Return the samples of one file; a last line that was cut off is left out and noted.

    Raises
    ------
    SpecError
        if the file cannot be read, is no samples file, or holds a wrong line or a time that is no time; all
        are named.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(str(path), [f"cannot be read as a samples file: {error}"]) from None
    whole = text[: text.rfind("\n") + 1]
    notes = []
    if len(whole) < len(text):
        notes.append(f"{path}: the last line is cut off and was left out; everything before it is kept")
    rows = list(csv.reader(io.StringIO(whole)))
    if not rows or "kind" not in rows[0] or "shape" not in rows[0]:
        raise SpecError(str(path), [f"is no samples file: the first line must name {', '.join(COLUMNS)}"])
    header, samples, failed, problems = rows[0], [], [], []
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            problems.append(f"line {number} has {len(row)} cells, the header {len(header)}")
            continue
        try:
            sample = _parsed(dict(zip(header, row, strict=True)))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        if sample.error:
            failed.append(sample)
        elif not isfinite(sample.seconds) or sample.seconds <= 0:
            problems.append(f"line {number}: seconds {sample.seconds!r} is not a positive number")
        else:
            samples.append(sample)
    if problems:
        raise SpecError(str(path), problems)
    return SampleFile(
        path=path,
        samples=tuple(samples),
        failed=tuple(failed),
        notes=tuple(notes),
        whole_bytes=len(whole.encode("utf-8")),
    )


def lines(samples: Iterable[Sample]) -> str:
    """Return a whole samples file."""
    return sample_line(None) + "".join(map(sample_line, samples))
