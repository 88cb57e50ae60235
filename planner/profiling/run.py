"""One profile: tasks that are left, most uncertain first, until time is over; each result kept at once."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import TextIO

from costmodels.samples import Sample, read_samples, sample_line
from hardware.errors import InputError, SpecError
from planner.profiling.backend import Backend, KernelFailedError
from planner.profiling.sensors import read_sensors
from planner.profiling.tasks import Task, most_uncertain
from planner.profiling.timing import measure

__all__ = ["Profile", "previous_samples", "run_profile"]

_STEP_REPEATS = 7
_STOP = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one run measured."""

    num_measured: int
    num_failed: int
    num_left: int
    num_known: int
    """Tasks that the file held already."""
    notes: tuple[str, ...] = ()


def previous_samples(
    path: Path, *, device: str, backend: str, num_ranks: int
) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Return the samples of a file to be continued, and what had to be left out; a cut-off end is removed.

    Raises
    ------
    SpecError
        if the file was measured on another device, with another back end or number of ranks.
    """
    if not path.exists() or not path.stat().st_size:
        return (), ()
    found = read_samples(path)
    known = found.samples + found.failed
    problems = [
        f"holds samples of {name} {there!r}, this run would add {name} {here!r}; write to another file"
        for name, here, all_there in (
            ("device", device, {s.device for s in known}),
            ("back end", backend, {s.backend for s in known}),
            ("rank count", num_ranks, {s.num_ranks for s in known}),
        )
        for there in sorted(all_there, key=str)
        if there != here
    ]
    if problems:
        raise SpecError(str(path), problems)
    if found.notes:
        with path.open("r+b") as file:
            file.truncate(found.whole_bytes)
    return known, found.notes


def run_profile(
    backend: Backend,
    tasks: list[Task],
    path: Path,
    *,
    device: str,
    minutes: float | None = None,
    repeats: int = 7,
    progress: TextIO | None = None,
) -> Profile:
    """Measure `tasks` and append what was found to `path`; rank 0 alone reads, decides and writes.

    Parameters
    ----------
    device : name under which the samples are filed.
    minutes : stop when so long has passed, the shape being measured finished; None measures everything.
    """
    leads = backend.ranks.rank == 0
    known, notes = (
        previous_samples(path, device=device, backend=backend.name, num_ranks=backend.ranks.num_ranks)
        if leads
        else ((), ())
    )
    seen = {s.key for s in known}
    todo = [i for i, t in enumerate(tasks) if (t.kind, t.shape, t.dtype, backend.ranks.num_ranks) not in seen]
    measured, failed, start = list(known), 0, monotonic()
    writer = _Writer(path) if leads else nullcontext(_nothing)
    with writer as write:
        done = 0
        while True:
            choice = _STOP
            in_time = minutes is None or monotonic() - start < 60.0 * minutes
            if leads and todo and in_time:
                place = most_uncertain([tasks[i] for i in todo], measured)
                choice = float(todo.pop(place if place is not None else 0))
            choice = backend.gather(choice)[0]
            if choice == _STOP:
                break
            sample = _measured(backend, tasks[int(choice)], device, repeats)
            measured.append(sample)
            write(sample)
            done += 1
            failed += bool(sample.error)
            _report(progress if leads else None, sample, done, len(todo))
    return Profile(
        num_measured=done - failed,
        num_failed=failed,
        num_left=len(todo),
        num_known=len(known),
        notes=notes,
    )


def _nothing(sample: Sample) -> None:
    """Take the place of the writer on ranks that do not write."""


class _Writer(AbstractContextManager[Callable[[Sample], None]]):
    """An open samples file; every line is on disk before the next shape is measured."""

    def __init__(self, path: Path) -> None:
        try:
            fresh = not path.exists() or not path.stat().st_size
            self.file = path.open("a", encoding="utf-8")
        except OSError as error:
            message = f"{path}: cannot be written: {error.strerror}"
            raise InputError(message) from None
        if fresh:
            self.file.write(sample_line(None))

    def __enter__(self) -> Callable[[Sample], None]:
        return self.write

    def write(self, sample: Sample) -> None:
        """Append one line."""
        self.file.write(sample_line(sample))
        self.file.flush()

    def __exit__(self, *why: object) -> None:
        self.file.close()


def _measured(backend: Backend, task: Task, device: str, repeats: int) -> Sample:
    """Return the sample of one task: mean over ranks for kernels, which the slowest rank does not hold up;
    the slowest rank's time for collectives and steps.
    """
    where = {
        "kind": task.kind,
        "shape": task.shape,
        "dtype": task.dtype,
        "num_ranks": backend.ranks.num_ranks,
        "device": device,
        "backend": backend.name,
        "software": backend.software,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    try:
        call = backend.prepare(task.kind, dict(task.shape), task.dtype)
    except KernelFailedError as error:
        return Sample(**where, error=str(error), num_repeats=0)  # type: ignore[arg-type]
    timing = measure(
        call,
        backend.timed,
        agree=backend.agree,
        barrier=backend.barrier,
        repeats=min(repeats, _STEP_REPEATS) if task.kind == "step" else repeats,
    )
    reading = read_sensors(backend.sensor, backend.ranks.local_rank)
    together = "message_bytes" in dict(task.shape) or task.kind == "step"
    scale = 0.5 if task.kind == "p2p" else 1.0
    seconds, best = (backend.gather(v * scale) for v in (timing.seconds, timing.best_s))
    sample = Sample(
        **where,  # type: ignore[arg-type]
        seconds=max(seconds) if together else sum(seconds) / len(seconds),
        best_s=max(best) if together else sum(best) / len(best),
        spread_frac=timing.spread_frac,
        num_repeats=timing.num_repeats,
        num_rejected=timing.num_rejected,
        clock_hz=reading.clock_hz,
        temperature_c=reading.temperature_c,
        power_w=reading.power_w,
    )
    if not isfinite(sample.seconds) or sample.seconds <= 0:
        return Sample(**where, error=f"the clock said {sample.seconds}", num_repeats=0)  # type: ignore[arg-type]
    return sample


def _report(progress: TextIO | None, sample: Sample, done: int, left: int) -> None:
    if progress is None:
        return
    shape = " ".join(f"{k}={v:g}" for k, v in sample.shape)
    result = (
        f"failed: {sample.error}"
        if sample.error
        else f"{sample.seconds * 1e6:.1f} us ±{sample.spread_frac:.0%}"
    )
    progress.write(f"[{done}, {left} left] {sample.kind} {shape}: {result}\n")
    progress.flush()


def stderr_of(rank: int) -> TextIO | None:
    """Return where progress of a rank goes: the first rank's to stderr, others' nowhere."""
    return sys.stderr if rank == 0 else None
