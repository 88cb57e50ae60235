"""`meshwright calibrate`: measured samples to the coefficients of this machine."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.errors import readable_errors
from planner.cli.options import CatalogOption, ClusterOption, JsonOption, NodesOption, OutputOption

__all__ = ["calibrate"]


def calibrate(
    samples: Annotated[
        list[Path], typer.Argument(metavar="SAMPLES...", help="Files of `meshwright profile`.")
    ],
    cluster: ClusterOption = None,
    nodes: NodesOption = None,
    write_cluster: Annotated[
        Path | None,
        typer.Option(
            "--write-cluster", metavar="FILE", help="Describe the machine itself, where no --cluster does."
        ),
    ] = None,
    statistic: Annotated[
        str, typer.Option("--statistic", help="median, or best where others used the machine meanwhile.")
    ] = "median",
    like: Annotated[
        Path | None,
        typer.Option("--like", metavar="FILE", help="Calibration of a similar device to lean on."),
    ] = None,
    catalog: CatalogOption = None,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Fit kernels, links and the reference step; says how it did on held-out shapes."""
    with readable_errors():
        from costmodels.calibration.file import calibration_text
        from planner.calibration import calibrate_files
        from planner.plan_io import write_text

        document, notes = calibrate_files(
            samples,
            cluster=cluster,
            nodes=nodes,
            write_cluster=write_cluster,
            statistic=statistic,
            like=like,
            catalogs=tuple(catalog or ()),
        )
        for note in notes:
            typer.echo(f"note: {note}", err=True)
        text = calibration_text(document)
        if output is not None:
            write_text(text, output)
        if json:
            typer.echo(text, nl=False)
            return
        from planner.cli.render_calibration import print_calibration

        print_calibration(document)
