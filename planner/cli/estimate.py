"""`meshwright estimate train`: the cost of exactly one configuration."""

from typing import Annotated, Any

import typer

from planner.cli.errors import calibrated_by, readable_errors
from planner.cli.options import (
    CalibrationOption,
    CatalogOption,
    ClusterOption,
    DevicesPerNodeOption,
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

__all__ = ["estimate_train"]

_REQUEST_KEYS = (
    "model",
    "cluster",
    "nodes",
    "devices_per_node",
    "seq_len",
    "global_batch",
    "precision",
    "stack",
    "optimizer",
)


def _degree(flag: str, text: str, *, least: int = 1) -> Any:
    return typer.Option(flag, help=text, min=least)


def estimate_train(
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
    tp: Annotated[int, _degree("--tp", "Tensor-parallel degree.")] = 1,
    pp: Annotated[int, _degree("--pp", "Pipeline stages.")] = 1,
    dp: Annotated[int, _degree("--dp", "Data-parallel replicas; 0: all devices that are left.", least=0)] = 0,
    cp: Annotated[int, _degree("--cp", "Context-parallel degree.")] = 1,
    ep: Annotated[int, _degree("--ep", "Expert-parallel degree.")] = 1,
    etp: Annotated[int, _degree("--etp", "Tensor-parallel degree inside an expert.")] = 1,
    vpp: Annotated[int, _degree("--vpp", "Model chunks per pipeline rank.")] = 1,
    micro_batch: Annotated[int, _degree("--micro-batch", "Sequences per micro-batch.")] = 1,
    sequence_parallel: Annotated[bool, typer.Option("--sequence-parallel", help="Split norms too.")] = False,
    recompute: Annotated[str, typer.Option("--recompute", help="none, selective or full.")] = "none",
    recompute_layers: Annotated[
        int, _degree("--recompute-layers", "Layers per rank under full recompute; 0: all.", least=0)
    ] = 0,
    zero: Annotated[int, typer.Option("--zero", help="0 to 3.", min=0, max=3)] = 1,
    shard_group: Annotated[int, _degree("--shard-group", "Ranks that share; 0: all replicas.", least=0)] = 0,
    overlap_dp: Annotated[bool, typer.Option("--overlap-dp/--no-overlap-dp")] = True,
    overlap_tp: Annotated[bool, typer.Option("--overlap-tp/--no-overlap-tp")] = False,
    overlap_pp: Annotated[bool, typer.Option("--overlap-pp/--no-overlap-pp")] = False,
    request: RequestOption = None,
    catalog: CatalogOption = None,
    calibration: CalibrationOption = None,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Predict time and memory of exactly one configuration, part by part."""
    # Flags have the names of the request's keys and the strategy's columns; the context holds them as parsed.
    given = context.params
    with readable_errors(), calibrated_by(calibration):
        from dataclasses import fields

        from costmodels.strategy import Strategy
        from planner.plan import strategy_from_document
        from planner.plan_io import plan_text, write_plan
        from planner.request import read_train_request
        from planner.spec import spec_value
        from planner.training.estimate import estimate_training

        flags = {name: given[name] for name in _REQUEST_KEYS} | {"catalog": tuple(catalog or ())}
        columns = {f.name: given[f.name] for f in fields(Strategy)}
        strategy = spec_value("strategy", lambda: strategy_from_document(columns), Strategy)
        plan = estimate_training(read_train_request(request, flags), strategy)
        if output is not None:
            write_plan(plan, output)
        if json:
            typer.echo(plan_text(plan), nl=False)
            return
        from planner.render import print_training_plans

        print_training_plans(plan)
