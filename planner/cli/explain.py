"""`meshwright explain`: why a plan was chosen."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.errors import readable_errors
from planner.cli.options import JsonOption

if TYPE_CHECKING:
    from planner.plan import PlanFile
    from planner.serving.plan import ServingPlan

__all__ = ["explain"]


def explain(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file.")],
    json: JsonOption = False,
) -> None:
    """Say why the best plan of a file won, what each decision is worth and what was assumed."""
    with readable_errors():
        from planner.plan_io import plan_text, read_plan
        from planner.training.explain import explain_training

        file = read_plan(plan)
        if file.kind == "serve":
            _explain_serving(file, json=json)
            return
        if file.kind == "power":
            from planner.cli.render_power import print_power_plan

            typer.echo(plan_text(file), nl=False) if json else print_power_plan(file)
            return
        explanation = explain_training(file)
        if json:
            typer.echo(plan_text(explanation), nl=False)
            return
        from planner.cli.render_reasons import print_explanation

        print_explanation(explanation)


def _explain_serving(file: "PlanFile[ServingPlan]", *, json: bool) -> None:
    """Print why a serving plan won."""
    from planner.plan_io import plan_text
    from planner.serving.explain import explain_serving

    explanation = explain_serving(file)
    if json:
        typer.echo(plan_text(explanation), nl=False)
        return
    from planner.cli.render_serving_reasons import print_serving_explanation

    print_serving_explanation(explanation)
