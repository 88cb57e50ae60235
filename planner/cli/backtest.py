"""`meshwright backtest`: measured runs against predictions."""

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from planner.cli.errors import calibrated_by, readable_errors
from planner.cli.options import CalibrationOption, JsonOption

__all__ = ["backtest_kernels", "backtest_memory", "backtest_serve", "backtest_train"]

RunsArgument = Annotated[Path, typer.Argument(metavar="RUNS.csv", help="Measured runs.")]
ByOption = Annotated[str | None, typer.Option("--by", metavar="COLUMN", help="Show errors by this column.")]


def backtest_train(
    runs: RunsArgument,
    by: ByOption = None,
    calibration: CalibrationOption = None,
    json: JsonOption = False,
) -> None:
    """Compare predicted step times, ranks and feasibility with measured training runs."""
    with readable_errors(), calibrated_by(calibration):
        from costmodels.backtest.training import backtest_training

        _print(backtest_training(runs, by=by), as_json=json)


def backtest_memory(
    runs: RunsArgument,
    by: ByOption = None,
    json: JsonOption = False,
) -> None:
    """Compare predicted peak memory with measured runs."""
    with readable_errors():
        from costmodels.backtest.memory import backtest_memory as compare

        _print(compare(runs, by=by), as_json=json)


def backtest_kernels(
    runs: RunsArgument,
    device: Annotated[str | None, typer.Option("--device", help="Device; else from the table.")] = None,
    op: Annotated[str | None, typer.Option("--op", help="gemm, attention, mla or experts.")] = None,
    by: ByOption = None,
    calibration: CalibrationOption = None,
    json: JsonOption = False,
) -> None:
    """Compare predicted kernel times with measured ones."""
    with readable_errors(), calibrated_by(calibration):
        from costmodels.backtest.kernels import backtest_kernels as compare

        _print(compare(runs, device=device, op=op, by=by), as_json=json)


def backtest_serve(
    runs: RunsArgument,
    by: ByOption = None,
    json: JsonOption = False,
) -> None:
    """Compare predicted TTFT and TPOT with measured serving points."""
    with readable_errors():
        from costmodels.backtest.serving import backtest_serving

        _print(backtest_serving(runs, by=by), as_json=json)


def _print(result: Any, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json_module.dumps(result.to_json(), allow_nan=False))
        return
    from planner.render import print_errors

    print_errors(result.table_rows())
