"""`meshwright compare`: what differs between two plans."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.errors import readable_errors
from planner.cli.options import JsonOption

if TYPE_CHECKING:
    from planner.serving.plan import ServingPlan

__all__ = ["compare"]


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A plan file; A#2 is its second plan.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another, or the same file with another #.")],
    json: JsonOption = False,
) -> None:
    """Say how two plans differ and what each difference costs."""
    with readable_errors():
        from hardware.errors import InputError
        from planner.plan_io import plan_text
        from planner.training.compare import asked_differently, compare_plans, read_one_plan

        (kind, a, wanted), (other, b, other_wanted) = read_one_plan(first), read_one_plan(second)
        if kind != other:
            message = (
                f"{second}: is a plan of kind {other!r}, {first} one of kind {kind!r}; compare like with like"
            )
            raise InputError(message)
        asked = asked_differently(wanted, other_wanted)
        if kind == "serve":
            _compare_serving(a, b, asked, json=json)
            return
        comparison = compare_plans(a, b, asked=asked)
        if json:
            typer.echo(plan_text(comparison), nl=False)
            return
        from planner.cli.render_reasons import print_comparison

        print_comparison(comparison)


def _compare_serving(
    first: "ServingPlan", second: "ServingPlan", asked: Mapping[str, tuple[str, str]], *, json: bool
) -> None:
    """Print how two serving plans differ."""
    from planner.plan_io import plan_text
    from planner.serving.compare import compare_serving

    comparison = compare_serving(first, second, asked=asked)
    if json:
        typer.echo(plan_text(comparison), nl=False)
        return
    from planner.cli.render_serving_reasons import print_serving_comparison

    print_serving_comparison(comparison)
