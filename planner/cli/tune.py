"""`meshwright tune`: plan, run, correct, until a better configuration is unlikely."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.errors import calibrated_by, readable_errors
from planner.cli.options import CalibrationOption, ClusterOption, JsonOption, OutputOption

__all__ = ["tune"]


def tune(
    request: Annotated[str, typer.Option("--request", metavar="FILE", help="Training request in YAML.")],
    command: Annotated[
        str | None,
        typer.Option(
            "--command",
            help="Runs one configuration and prints its seconds per step last, such as "
            "'./run.sh {tp} {pp} {dp} {micro_batch}'; without it, local processes run the reference step.",
        ),
    ] = None,
    max_runs: Annotated[
        int | None, typer.Option("--max-runs", help="Runs; a quarter of the candidates by default.", min=1)
    ] = None,
    min_gain: Annotated[
        float, typer.Option("--min-gain", help="Stop below this expected gain, as a fraction.", min=0.0)
    ] = 0.01,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="FILE", help="Samples file for the steps that were run.")
    ] = None,
    statistic: Annotated[
        str, typer.Option("--statistic", help="median, or best where others used the machine meanwhile.")
    ] = "median",
    cluster: ClusterOption = None,
    calibration: CalibrationOption = None,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Find the fastest configuration with few runs."""
    with readable_errors(), calibrated_by(calibration):
        from planner.plan_io import write_text
        from planner.request import read_train_request
        from planner.tune import TuneRequest, command_runner, local_runner
        from planner.tune import tune as tuned

        asked = read_train_request(request, {} if cluster is None else {"cluster": cluster})
        run = command_runner(command) if command else local_runner(asked, samples=keep, statistic=statistic)
        document = tuned(asked, run, TuneRequest(max_runs=max_runs, min_gain_frac=min_gain))
        text = json_module.dumps(document, indent=1, allow_nan=False) + "\n"
        if output is not None:
            write_text(text, output)
        if json:
            typer.echo(text, nl=False)
            return
        from planner.cli.render_calibration import print_tuning

        print_tuning(document)
