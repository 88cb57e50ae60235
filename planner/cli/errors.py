"""What a person at a terminal sees besides the answer: errors with exit codes, and that work goes on."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from hardware.errors import PlannerError

__all__ = ["calibrated_by", "readable_errors", "working"]


@contextmanager
def readable_errors() -> Iterator[None]:
    """Run a command; a `PlannerError` becomes one message on stderr and its exit code.

    Exit codes: 2 bad input, 3 infeasible, 4 solver failed. Our own bugs keep their traceback.
    """
    try:
        yield
    except PlannerError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


@contextmanager
def calibrated_by(path: Path | None) -> Iterator[None]:
    """Predict with the calibration in a file; with the shipped coefficients for None."""
    if path is None:
        yield
        return
    from costmodels.calibrated import using
    from costmodels.calibration.file import read_calibration

    with using(read_calibration(path)):
        yield


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on stderr that work goes on; silent where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
