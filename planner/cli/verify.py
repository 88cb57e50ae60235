"""`meshwright verify`: emitted files against our tables and the parsers at hand."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.errors import readable_errors

__all__ = ["verify"]


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `meshwright emit` wrote.")],
    python: Annotated[
        list[str] | None,
        typer.Option(
            "--python",
            metavar="PATH",
            help="Interpreter with a framework's packages (repeatable); this one by default.",
        ),
    ] = None,
    parsers: Annotated[bool, typer.Option("--parsers/--no-parsers", help="Run the real parsers.")] = True,
) -> None:
    """Check the files and write a receipt beside them; exit code 2 if a check fails."""
    with readable_errors():
        from planner.emit.verify.verify_folder import RECEIPT, verify_folder

        verdicts = verify_folder(folder, pythons=tuple(python or ()), parsers=parsers)
        for v in verdicts:
            typer.echo(f"{v.verdict:4}  {v.checker} {v.version}".rstrip())
            for problem in v.problems:
                typer.echo(f"      {problem}")
        typer.echo(f"written: {folder / RECEIPT}", err=True)
        if any(v.verdict == "fail" for v in verdicts):
            raise typer.Exit(2)
