"""One profile: tasks that are left, most uncertain first, until time is over; each result kept at once."""

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import inf, isfinite
from pathlib import Path
from time import monotonic
from typing import TextIO

from costmodels.samples import Sample, read_samples, sample_line
from hardware.errors import InputError, SpecError
from planner.profiling.backend import Backend, KernelFailedError
from planner.profiling.interference import Watch
from planner.profiling.sensors import read_sensors
from planner.profiling.tasks import Task, most_uncertain
from planner.profiling.timing import BATCH_S, measure

__all__ = ["Profile", "previous_samples", "run_profile"]

_STEP_REPEATS = 5
_TURNS_BATCH_S = 0.02
"""A repeat of a kernel lasts at least so long where ranks take turns on processors: several turns."""
_TOGETHER_BATCH_S = 0.03
"""A repeat of a collective lasts at least so long: its calls differ more than those of a kernel, and a step
pays their mean."""
_STOP = -1.0
_RETRIES = 2
"""A disturbed measurement is taken again so often, and the least disturbed one is kept."""
_BUSY_AFTER = 6
"""Retries in vain, all in all, after which the machine is taken for busy and nothing is taken again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one run measured."""

    num_measured: int
    num_failed: int
    num_left: int
    num_known: int
    """Tasks that the file held already."""
    num_disturbed: int = 0
    """Measured while others used the machine, and still so when taken again."""
    num_retaken: int = 0
    """Measurements thrown away because others used the machine meanwhile."""
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
    measured = list(known)
    until = inf if minutes is None else monotonic() + 60.0 * minutes
    meter = _Meter(backend, device, repeats, until)
    writer = _Writer(path) if leads else nullcontext(_nothing)
    fresh: list[Sample] = []
    with writer as write:
        while True:
            choice = _STOP
            if leads and todo and monotonic() < until:
                place = most_uncertain([tasks[i] for i in todo], measured)
                choice = float(todo.pop(place if place is not None else 0))
            choice = backend.gather(choice)[0]
            if choice == _STOP:
                break
            sample = meter.sample(tasks[int(choice)])
            measured.append(sample)
            fresh.append(sample)
            write(sample)
            _report(progress if leads else None, sample, len(fresh), len(todo))
    failed = sum(bool(s.error) for s in fresh)
    return Profile(
        num_measured=len(fresh) - failed,
        num_failed=failed,
        num_left=len(todo),
        num_known=len(known),
        num_disturbed=sum(s.disturbance > 1.0 for s in fresh),
        num_retaken=meter.num_retaken,
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


class _Meter:
    """Takes samples on one rank together with the others; takes again what was disturbed."""

    def __init__(self, backend: Backend, device: str, repeats: int, until: float) -> None:
        self.backend, self.device, self.repeats, self.until = backend, device, repeats, until
        in_turns = backend.on_host and backend.ranks.num_ranks > (os.cpu_count() or 1)
        self.kernel_batch_s = _TURNS_BATCH_S if in_turns else BATCH_S
        self.num_retaken = 0
        self.num_vain = 0
        self.watch = Watch(backend.reference_s, backend.gather)

    def sample(self, task: Task) -> Sample:
        """Return the sample of one task, the least disturbed of several where others used the machine."""
        ranks, backend = self.backend.ranks, self.backend
        blank = Sample(
            kind=task.kind,
            shape=task.shape,
            dtype=task.dtype,
            num_ranks=ranks.num_ranks,
            device=self.device,
            backend=backend.name,
            software=backend.software,
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
            num_repeats=0,
        )
        try:
            call = backend.prepare(task.kind, dict(task.shape), task.dtype)
        except KernelFailedError as error:
            return replace(blank, error=str(error))
        best = self._once(call, blank)
        for _ in range(_RETRIES if backend.on_host else 0):
            if best.error or best.disturbance <= 1.0 or not self._may_retake():
                break
            again = self._once(call, blank)
            self.num_retaken += 1
            if not again.error and again.disturbance < best.disturbance:
                best = again
            self.num_vain = 0 if best.disturbance <= 1.0 else self.num_vain + 1
        return best

    def _may_retake(self) -> bool:
        """Return what rank 0 decides: there is time left, and it has helped lately."""
        worth = self.num_vain < _BUSY_AFTER and monotonic() < self.until
        return self.backend.gather(float(worth))[0] > 0.0

    def _once(self, call: Callable[[], object], blank: Sample) -> Sample:
        """Return one measurement: the mean over ranks for kernels, which the slowest rank does not hold up,
        the slowest rank's time for collectives and steps.
        """
        backend, step = self.backend, blank.kind == "step"
        together = "message_bytes" in blank.at or step
        self.watch.start()
        timing = measure(
            call,
            backend.timed,
            agree=backend.agree,
            barrier=backend.barrier,
            repeats=min(self.repeats, _STEP_REPEATS) if step else self.repeats,
            batch_s=_TOGETHER_BATCH_S if together else self.kernel_batch_s,
        )
        reading = read_sensors(backend.sensor, backend.ranks.local_rank)
        disturbance = self.watch.stop()
        scale = 0.5 if blank.kind == "p2p" else 1.0
        seconds, best = (backend.gather(v * scale) for v in (timing.seconds, timing.best_s))
        middle = max(seconds) if together else sum(seconds) / len(seconds)
        if not isfinite(middle) or middle <= 0:
            return replace(blank, error=f"the clock said {middle}")
        return replace(
            blank,
            seconds=middle,
            best_s=max(best) if together else sum(best) / len(best),
            spread_frac=timing.spread_frac,
            num_repeats=timing.num_repeats,
            num_rejected=timing.num_rejected,
            clock_hz=reading.clock_hz,
            temperature_c=reading.temperature_c,
            power_w=reading.power_w,
            others_frac=disturbance.others_frac,
            slowdown_frac=disturbance.slowdown_frac,
        )


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
