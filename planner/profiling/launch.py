"""Local ranks: start processes on this machine that measure together, and say which one died."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from hardware.errors import InputError, OutOfDomainError
from planner.profiling.tasks import Task

__all__ = ["measure_locally", "run_ranks"]

_GRACE_S = 3.0
_POLL_S = 0.05
_MESSAGE_LINES = 6
_ERROR = "error: "
"""Before the message with which a rank refuses its input."""


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _environment(rank: int, num_ranks: int, port: int, threads: int) -> dict[str, str]:
    own = {
        "RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
    }
    return {**os.environ, **own}


def run_ranks(command: Sequence[str], num_ranks: int, *, threads: int = 1, timeout_s: float = 1800.0) -> None:
    """Run `command` once per rank and wait for all; the first rank's stderr is passed on.

    Raises
    ------
    InputError
        if a rank refuses its input.
    OutOfDomainError
        if a rank dies or time runs out; the others are ended, and the last lines of the dead one are shown.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="meshwright-") as folder:
        logs = [Path(folder) / f"rank{r}.log" for r in range(num_ranks)]
        ranks = []
        for rank, log in enumerate(logs):
            with log.open("w", encoding="utf-8") as file:
                ranks.append(
                    subprocess.Popen(
                        command,
                        env=_environment(rank, num_ranks, port, threads),
                        stdout=file,
                        stderr=None if rank == 0 and sys.stderr.isatty() else file,
                    )
                )
        dead = _wait(ranks, timeout_s)
        _end(ranks)
        if dead is not None:
            code = ranks[dead].returncode
            text = logs[dead].read_text(encoding="utf-8", errors="replace").strip().splitlines()
            if code == InputError.exit_code and text and text[-1].startswith(_ERROR):
                raise InputError(text[-1].removeprefix(_ERROR))
            said = "\n  ".join(text[-_MESSAGE_LINES:]) or "it said nothing"
            how = f"was ended by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            message = (
                f"rank {dead} of {num_ranks} died ({how}); what was measured until then is kept, and a "
                f"second run with the same output goes on from there:\n  {said}"
            )
            raise OutOfDomainError(message)


def _wait(ranks: list[subprocess.Popen[bytes]], timeout_s: float) -> int | None:
    """Return the first rank that failed, None when all ended well."""
    until = monotonic() + timeout_s
    while True:
        codes = [p.poll() for p in ranks]
        failed = [i for i, code in enumerate(codes) if code not in (None, 0)]
        if failed:
            return failed[0]
        if all(code == 0 for code in codes):
            return None
        if monotonic() > until:
            return next(i for i, code in enumerate(codes) if code is None)
        sleep(_POLL_S)


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    for process in ranks:
        if process.poll() is None:
            process.terminate()
    until = monotonic() + _GRACE_S
    for process in ranks:
        try:
            process.wait(max(until - monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measure_locally(
    tasks: Sequence[Task],
    path: Path,
    *,
    backend: str,
    num_ranks: int,
    device: str,
    minutes: float | None = None,
    repeats: int = 7,
    threads: int = 1,
) -> Mapping[str, Any]:
    """Measure `tasks` on `num_ranks` processes of this machine, into `path`; return the counts of the run."""
    if not path.parent.is_dir():
        message = f"{path}: the folder does not exist"
        raise InputError(message)
    with tempfile.TemporaryDirectory(prefix="meshwright-") as folder:
        order, answer = Path(folder) / "order.json", Path(folder) / "answer.json"
        document = {
            "tasks": [asdict(t) for t in tasks],
            "path": str(path.resolve()),
            "backend": backend,
            "device": device,
            "minutes": minutes,
            "repeats": repeats,
            "threads": threads,
            "answer": str(answer),
        }
        order.write_text(json.dumps(document), encoding="utf-8")
        run_ranks([sys.executable, "-m", "planner.profiling.worker", str(order)], num_ranks, threads=threads)
        found: Mapping[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found
