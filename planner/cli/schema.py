"""`meshwright schema`: the JSON schema of a file format."""

from typing import Annotated

import typer

from planner.cli.errors import readable_errors

__all__ = ["schema"]


def schema(
    name: Annotated[str, typer.Argument(metavar="plan|request|cluster", help="Which file format.")],
) -> None:
    """Print the JSON schema of a file format."""
    with readable_errors():
        from planner.schemas import schema_text

        typer.echo(schema_text(name), nl=False)
