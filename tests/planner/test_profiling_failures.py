"""What goes wrong while ranks measure together: nothing measured is lost, and a second run goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from costmodels.samples import read_samples
from planner.profiling.launch import measure_locally
from planner.profiling.tasks import Task

pytest.importorskip("torch", reason="several ranks need torch")

TASKS = [Task.of("copy", num_bytes=2.0**p + 64 * i) for i in range(30) for p in (12, 16, 20)]
PROGRAM = """
import sys
from pathlib import Path
from hardware.errors import OutOfDomainError
from planner.profiling.launch import measure_locally
from tests.planner.test_profiling_failures import TASKS
try:
    measure_locally(TASKS, Path(sys.argv[1]), backend="cpu", num_ranks=2, device="box")
except OutOfDomainError as error:
    sys.exit(str(error))
"""


def children_of(pid: int) -> list[int]:
    """Return the processes that a process started, oldest first."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds ranks under /proc")
def test_a_rank_that_dies_loses_nothing_and_a_second_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)], stderr=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    until = monotonic() + 120
    while monotonic() < until and (not path.exists() or path.read_text(encoding="utf-8").count("\n") < 4):
        sleep(0.05)
    os.kill(children_of(program.pid)[1], signal.SIGKILL)
    _, said = program.communicate(timeout=60)
    assert program.returncode == 1
    assert "rank 1 of 2 died (was ended by signal 9)" in said
    assert "is kept" in said
    before = len(read_samples(path).samples)
    assert before >= 3
    found = measure_locally(TASKS[:6], path, backend="cpu", num_ranks=2, device="box")
    assert found["num_known"] == before
    after = read_samples(path)
    assert {t.shape for t in TASKS[:6]} <= {s.shape for s in after.samples}


@pytest.mark.slow
def test_a_kernel_that_does_not_fit_is_noted_by_all_ranks_and_the_rest_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    huge = Task.of("copy", num_bytes=2.0**55)
    found = measure_locally([huge, *TASKS[:2]], path, backend="cpu", num_ranks=2, device="box")
    assert (found["num_failed"], found["num_measured"]) == (1, 2)
    assert read_samples(path).failed[0].error == "out of memory"
