"""`meshwright compare`: what differs between two plans."""

from typing import Annotated

import typer

from planner.cli.errors import readable_errors
from planner.cli.options import JsonOption

__all__ = ["compare"]


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A plan file; A#2 is its second plan.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another, or the same file with another #.")],
    json: JsonOption = False,
) -> None:
    """Say how two plans differ and what each difference costs."""
    with readable_errors():
        from planner.compare import compare_plans, read_one_plan
        from planner.plan_io import plan_text

        comparison = compare_plans(read_one_plan(first), read_one_plan(second))
        if json:
            typer.echo(plan_text(comparison), nl=False)
            return
        from planner.cli.render_reasons import print_comparison

        print_comparison(comparison)
