"""`meshwright emit`: the files that start a plan."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.errors import readable_errors

__all__ = ["emit"]


def emit(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan file; PLAN#2 is its second plan.")],
    target: Annotated[
        str, typer.Option("--target", metavar="NAME[@VERSION]", help="Framework, for example vllm@0.33.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="New or empty folder for the files.")
    ],
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            help="torchrun (serving: shell), slurm, kubernetes, ray or skypilot; the first by default.",
        ),
    ] = None,
    hosts: Annotated[
        str | None,
        typer.Option("--hosts", metavar="FILE", help="Real host names, one per line, in cluster order."),
    ] = None,
    power_plan: Annotated[
        str | None,
        typer.Option("--power-plan", metavar="FILE", help="Power plan whose command files ride along."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where the target cannot express all of the plan.")
    ] = False,
) -> None:
    """Write everything that starts the job as planned."""
    with readable_errors():
        from planner.emit.emit_plan import emit_plan
        from planner.emit.write import write_emission

        emission = emit_plan(
            plan, target, scheduler=scheduler, hosts=hosts, strict=strict, power_plan=power_plan
        )
        names = write_emission(emission, output)
        for name in names:
            typer.echo(str(output / name))
        for caveat in emission.caveats:
            typer.echo(f"caveat: {caveat.feature}: {caveat.instead}", err=True)
