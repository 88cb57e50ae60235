"""`meshwright plan power`: how full a row may be, which clocks a pipeline needs, which caps a fleet bears."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.errors import readable_errors
from planner.cli.options import CatalogOption, FacilityFlag, JsonOption, OutputOption

__all__ = ["plan_power_verb"]


def plan_power_verb(
    plan: Annotated[
        str | None,
        typer.Option("--plan", metavar="FILE", help="Training or serving plan to find clocks or caps for."),
    ] = None,
    request: Annotated[
        str | None,
        typer.Option("--request", metavar="FILE", help="Power request in YAML: row, training, serving."),
    ] = None,
    commands: Annotated[
        Path | None,
        typer.Option(
            "--commands", metavar="DIR", help="Write command files with rollback into a new folder."
        ),
    ] = None,
    facility: FacilityFlag = None,
    catalog: CatalogOption = None,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Answer questions about power: servers per row, clocks along a pipeline, caps of a fleet."""
    with readable_errors():
        from planner.emit.power_commands import power_emission
        from planner.emit.write import write_emission
        from planner.plan_io import plan_text, write_plan
        from planner.power.flow import plan_power
        from planner.power.request import read_power_request

        found = plan_power(
            read_power_request(request, plan, {"catalog": tuple(catalog or ()), "facility": facility})
        )
        if output is not None:
            write_plan(found, output)
        if commands is not None:
            write_emission(power_emission(found.plans[0]), commands)
        if json:
            typer.echo(plan_text(found), nl=False)
            return
        from planner.cli.render_power import print_power_plan

        print_power_plan(found)
        for path in (p for p in (output, commands) if p is not None):
            typer.echo(f"written: {path}", err=True)
