"""One rank of a local measurement: reads its order, measures with the others, the first one answers."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from hardware.errors import PlannerError
from planner.profiling.backends import make_backend
from planner.profiling.ranks import ranks_of
from planner.profiling.run import run_profile, stderr_of
from planner.profiling.tasks import Task

__all__ = ["work"]


def work(order: Path) -> None:
    """Carry out the order in a file."""
    asked = json.loads(order.read_text(encoding="utf-8"))
    tasks = [Task(**{**t, "shape": tuple((n, v) for n, v in t["shape"])}) for t in asked["tasks"]]
    ranks = ranks_of()
    options = {} if asked["backend"] == "numpy" else {"threads": asked["threads"]}
    backend = make_backend(asked["backend"], ranks, **options)
    found = run_profile(
        backend,
        tasks,
        Path(asked["path"]),
        device=asked["device"],
        minutes=asked["minutes"],
        repeats=asked["repeats"],
        progress=stderr_of(ranks.rank),
    )
    if ranks.rank == 0:
        Path(asked["answer"]).write_text(json.dumps(asdict(found)), encoding="utf-8")
    backend.close()


if __name__ == "__main__":
    try:
        work(Path(sys.argv[1]))
        sys.stderr.flush()
        # Threads of a communication library that still run can abort an interpreter that unloads.
        os._exit(0)
    except PlannerError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
