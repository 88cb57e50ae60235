"""Processes that hold a framework imported and answer one job after another; started when first asked."""

import atexit
import contextlib
import json
import os
import selectors
import subprocess
import tempfile
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

__all__ = ["ProbeError", "ProbeProcess", "probe_process"]

_ANSWER_LIMIT_S = 300.0
_CHECKS = "# checks\n"
"""Line of a probe before which it prepares, after which it checks one folder."""


class ProbeError(Exception):
    """A probe gave no answer."""


class ProbeProcess:
    """One probe in one interpreter."""

    def __init__(self, name: str, python: str) -> None:
        folder = files("planner.emit.verify").joinpath("probes")
        common, probe = (folder.joinpath(f"{n}.py.txt").read_text(encoding="utf-8") for n in ("common", name))
        prepare, _, checks = probe.partition(_CHECKS)
        # The caller's own modules must not stand before the framework's.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self._heard = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._last: dict[str, Any] = {}
        try:
            self._process = subprocess.Popen(
                [python, "-P", "-c", f"{common}\n{prepare}\nserve({checks!r})\n"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._heard,
                text=True,
                env=environment,
            )
        except OSError as error:
            self._heard.close()
            message = f"not run: {error}"
            raise ProbeError(message) from None

    def ask(self, folder: Path, given: str) -> dict[str, Any]:
        """Return the answer on one folder.

        Raises
        ------
        ProbeError
            if none came.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has answered for good: the package is absent
            process.stdin.write(json.dumps({"folder": str(folder), "given": json.loads(given)}) + "\n")
            process.stdin.flush()
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            ready = waiting.select(timeout=_ANSWER_LIMIT_S)
        line = process.stdout.readline() if ready else ""
        if line:
            self._last = json.loads(line)
        elif self._last.get("verdict") != "skip":  # an absent package is said once and holds for all
            raise ProbeError(self._reason(bool(ready)))
        return self._last

    def _reason(self, ended: bool) -> str:
        self._process.kill()
        if not ended:
            return f"the parser did not answer within {_ANSWER_LIMIT_S:g} s"
        self._process.wait()
        self._heard.seek(0)
        lines = self._heard.read().strip().splitlines()
        return f"the parser did not run: {lines[-1] if lines else 'no answer'}"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout, self._heard):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process.wait()


@lru_cache(maxsize=32)
def probe_process(name: str, python: str) -> ProbeProcess:
    """Return the running process of a probe in an interpreter; it ends with this program."""
    process = ProbeProcess(name, python)
    atexit.register(process.close)
    return process
