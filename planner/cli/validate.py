"""`meshwright validate`: run what a plan runs, and compare."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.errors import calibrated_by, readable_errors
from planner.cli.options import CalibrationOption, JsonOption

__all__ = ["validate"]


def validate(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="Plan file of `plan train`.")],
    backend: Annotated[str, typer.Option("--backend", help="cpu, cuda, rocm or npu.")] = "cpu",
    ranks: Annotated[
        int | None, typer.Option("--ranks", help="Processes; as many as the plan's devices.", min=1)
    ] = None,
    what: Annotated[
        list[str] | None, typer.Option("--what", help="kernels, collectives, step; repeat or use commas.")
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option("--samples", metavar="FILE", help="Keep the measurements in a samples file."),
    ] = None,
    statistic: Annotated[
        str, typer.Option("--statistic", help="median, or best where others used the machine meanwhile.")
    ] = "median",
    calibration: CalibrationOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the calibration that would mend the plan: --calibration, moved by what was measured.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run the plan's own kernels, collectives and step on this machine; say how far off it was."""
    with readable_errors(), calibrated_by(calibration):
        from costmodels.calibrated import current
        from costmodels.calibration.file import calibrate, calibration_text
        from planner.plan_io import read_plan, write_text
        from planner.profiling.validation import WHAT, ValidationRequest, job_of, validate_plan

        words = tuple(word for entry in what or () for word in entry.split(",") if word)
        asked = ValidationRequest(
            backend=backend, ranks=ranks, what=words or WHAT, samples=samples, statistic=statistic
        )
        file = read_plan(plan)
        document, measured = validate_plan(file, asked, str(plan))
        if output is not None:
            _, cluster = job_of(file, str(plan))
            mended = calibrate(measured, cluster, statistic=statistic, like=current())
            write_text(calibration_text(mended), output)
        if json:
            typer.echo(json_module.dumps(document, allow_nan=False))
            return
        from planner.cli.render_calibration import print_validation

        print_validation(document)
