"""`meshwright explain`: why a plan was chosen."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.errors import readable_errors
from planner.cli.options import JsonOption

__all__ = ["explain"]


def explain(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file.")],
    json: JsonOption = False,
) -> None:
    """Say why the best plan of a file won, what each decision is worth and what was assumed."""
    with readable_errors():
        from planner.explain import explain_training
        from planner.plan_io import plan_text, read_plan

        explanation = explain_training(read_plan(plan))
        if json:
            typer.echo(plan_text(explanation), nl=False)
            return
        from planner.cli.render_reasons import print_explanation

        print_explanation(explanation)
