"""`meshwright plan train`: the fastest training configuration that fits."""

from pathlib import Path
from typing import Annotated, Any

import typer

from planner.cli.errors import calibrated_by, readable_errors, working
from planner.cli.options import (
    CalibrationOption,
    CatalogOption,
    ClusterOption,
    DevicesPerNodeOption,
    FacilityFlag,
    GlobalBatchOption,
    JsonOption,
    ModelOption,
    NodesOption,
    OptimizerOption,
    OutputOption,
    PrecisionOption,
    RequestOption,
    SeqLenOption,
    StackOption,
)

__all__ = ["plan_train"]


MinFitsOption = Annotated[
    float | None,
    typer.Option("--min-fits-probability", help="A plan fits from this probability on; 0.99 by default."),
]
ObjectiveOption = Annotated[
    str | None, typer.Option("--objective", help="throughput (default), energy or cost.")
]
PowerBudgetOption = Annotated[
    float | None,
    typer.Option("--power-budget-w", "--power-budget", help="Watts that all devices together may draw."),
]
AttainedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--attained",
        metavar="GROUP=SPEED",
        help="Measured speed of a device of a group, any unit; repeat for every group.",
    ),
]
LocalStepsOption = Annotated[
    int | None,
    typer.Option("--local-steps", help="Groups average models every so many steps; another algorithm."),
]
LocalOverlapOption = Annotated[
    bool | None,
    typer.Option("--local-overlap/--no-local-overlap", help="Average under the next round (default)."),
]
QuantizedOption = Annotated[
    bool | None,
    typer.Option(
        "--quantized-sharding/--no-quantized-sharding",
        help="Also plan shards that travel in 8 and 4 bits; changes the numbers.",
    ),
]
LayerProfilesOption = Annotated[
    str | None,
    typer.Option("--layer-profiles", metavar="FILE", help="Measured layer times of the model by group."),
]
CompareOption = Annotated[
    Path | None,
    typer.Option(
        "--compare-with", metavar="FILE", help="What runs today: Megatron script or DeepSpeed JSON."
    ),
]
_NO_KEYS = ("compare_with", "request", "calibration", "output", "json")
"""Options that say where to read and write, not what to plan."""


def plan_train(
    context: typer.Context,
    model: ModelOption = None,
    cluster: ClusterOption = None,
    nodes: NodesOption = None,
    devices_per_node: DevicesPerNodeOption = None,
    seq_len: SeqLenOption = None,
    global_batch: GlobalBatchOption = None,
    precision: PrecisionOption = None,
    stack: StackOption = None,
    optimizer: OptimizerOption = None,
    top: Annotated[int | None, typer.Option("--top", help="Plans, best first; 5 by default.")] = None,
    min_fits_probability: MinFitsOption = None,
    objective: ObjectiveOption = None,
    power_budget_w: PowerBudgetOption = None,
    facility: FacilityFlag = None,
    attained: AttainedOption = None,
    local_steps: LocalStepsOption = None,
    local_overlap: LocalOverlapOption = None,
    layer_profiles: LayerProfilesOption = None,
    quantized_sharding: QuantizedOption = None,
    compare_with: CompareOption = None,
    request: RequestOption = None,
    catalog: CatalogOption = None,
    calibration: CalibrationOption = None,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Find the fastest training configuration that fits in memory."""
    # Flags have the names of the request's keys; the context holds them as they were parsed.
    flags: dict[str, Any] = {name: value for name, value in context.params.items() if name not in _NO_KEYS}
    with readable_errors(), calibrated_by(calibration):
        from planner.emit.running_job_text import read_running_file
        from planner.plan_io import plan_text, write_plan
        from planner.request import named_speeds, read_train_request
        from planner.training.flow import plan_training

        words = {"attained": named_speeds(attained or ()), "catalog": tuple(catalog or ())}
        asked = read_train_request(request, flags | words)
        running = None if compare_with is None else read_running_file(compare_with, asked)
        with working("searching every legal strategy"):
            plan = plan_training(asked)
        if output is not None:
            write_plan(plan, output)
        if json:
            typer.echo(plan_text(plan), nl=False)
            return
        from planner.render import print_training_plans

        print_training_plans(plan)
        if running is not None:
            _print_running(compare_with, running, asked, plan)
        if output is not None:
            typer.echo(f"written: {output}", err=True)


def _print_running(path: Path | None, job: Any, asked: Any, plan: Any) -> None:
    from planner.cli.render_reasons import print_comparison
    from planner.emit.running_job_text import compare_with_running

    current, comparison = compare_with_running(job.strategy, asked, plan)
    found = current.plans[0].predicted
    typer.echo(
        f"\nwhat {path} runs today: predicted step {found.step_s:.3f} s "
        f"({found.step_low_s:.3f} - {found.step_high_s:.3f} s), fits with {found.fits_probability:.2%}"
    )
    for option in job.ignored:
        typer.echo(f"not considered of it: {option}")
    print_comparison(comparison)
