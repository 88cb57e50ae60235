"""Errors of a question as short messages and exit codes; our own bugs keep their traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from hardware.errors import PlannerError

__all__ = ["readable_errors"]


@contextmanager
def readable_errors() -> Iterator[None]:
    """Run a command; a `PlannerError` becomes one message on stderr and its exit code.

    Exit codes: 2 bad input, 3 infeasible, 4 solver failed.
    """
    try:
        yield
    except PlannerError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
