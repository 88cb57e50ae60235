"""Did others use the machine while something was measured? What the system and a reference kernel say.

Two things disturb a measurement on a host's processors. Other programs take processor time: the system counts
what all programs used, and the ranks know what they used themselves. Other virtual machines take caches,
memory bandwidth and clock: a fixed reference kernel runs slower than at its best.
"""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, process_time
from zlib import crc32

__all__ = ["Disturbance", "Moment", "Watch", "others_frac", "parse_busy_s"]

_STAT = Path("/proc/stat")
_IDLE = (3, 4)
"""Columns of /proc/stat that are no use of the processor: idle, and idle with a disk at work."""
_GUEST_FROM = 8
"""From this column on, time is counted in earlier columns already."""
_REFERENCE_TRIES = 5


def parse_busy_s(text: str, ticks_per_s: float) -> float:
    """Return the processor seconds used (or stolen by the hypervisor) since the start, from /proc/stat.

    Examples
    --------
    >>> parse_busy_s("cpu 100 0 50 9000 30 0 0 20 0 0", 100.0)
    1.7
    """
    columns = [float(v) for v in text.split("\n", 1)[0].split()[1 : 1 + _GUEST_FROM]]
    return sum(v for i, v in enumerate(columns) if i not in _IDLE) / ticks_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Clocks of one rank and its host."""

    elapsed_s: float
    own_s: float
    """Processor time of this rank, all threads."""
    busy_s: float
    """Processor time that the whole host used; NaN where the system does not say."""

    @classmethod
    def now(cls) -> "Moment":
        """Return the clocks as they stand."""
        busy = float("nan")
        if _STAT.is_file():
            busy = parse_busy_s(_STAT.read_text(encoding="ascii"), float(os.sysconf("SC_CLK_TCK")))
        return cls(elapsed_s=monotonic(), own_s=process_time(), busy_s=busy)


def others_frac(before: Moment, after: Moment, own_s: float, num_processors: int) -> float:
    """Return the share of the host's processors that was neither idle nor used by the ranks.

    Parameters
    ----------
    own_s : processor time of all ranks on the host between the two moments. [s]
    """
    used = after.busy_s - before.busy_s - own_s
    return max(used, 0.0) / max((after.elapsed_s - before.elapsed_s) * num_processors, 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """How much the machine was used by others during one measurement; NaN for what cannot be told."""

    others_frac: float = float("nan")
    slowdown_frac: float = float("nan")
    """By how much the reference kernel was slower than at its best."""


class Watch:
    """Watches one rank's measurements; all ranks ask at the same points and get the same answer."""

    def __init__(self, reference_s: Callable[[], float], gather: Callable[[float], Sequence[float]]) -> None:
        self._reference_s, self._gather = reference_s, gather
        self._host = float(crc32(socket.gethostname().encode()) & 0xFFFFF)
        self._best_s = float("inf")
        self._before = Moment.now()
        self._paces: list[float] = []

    def _pace(self) -> float:
        """Return the reference kernel's seconds, averaged over ranks that take them together."""
        own = min(self._reference_s() for _ in range(_REFERENCE_TRIES))
        every = self._gather(own)
        return sum(every) / len(every)

    def start(self) -> None:
        """Begin a measurement."""
        self._paces = [self._pace()]
        self._before = Moment.now()

    def stop(self) -> Disturbance:
        """Return what disturbed the measurement that ends here, the worst of all hosts."""
        before, after = self._before, Moment.now()
        hosts = self._gather(self._host)
        used = self._gather(after.own_s - before.own_s)
        own = sum(s for host, s in zip(hosts, used, strict=True) if host == self._host)
        others = max(self._gather(others_frac(before, after, own, os.cpu_count() or 1)))
        paces = [*self._paces, self._pace()]
        self._best_s = min(self._best_s, *paces)
        return Disturbance(others_frac=others, slowdown_frac=max(paces) / self._best_s - 1.0)
