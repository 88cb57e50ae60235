"""Options that several verbs share; each has the name of its key in a request file."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "CalibrationOption",
    "CatalogOption",
    "ClusterOption",
    "DevicesPerNodeOption",
    "FacilityFlag",
    "GlobalBatchOption",
    "JsonOption",
    "ModelOption",
    "NodesOption",
    "OptimizerOption",
    "OutputOption",
    "PrecisionOption",
    "RequestOption",
    "SeqLenOption",
    "StackOption",
]

CalibrationOption = Annotated[
    Path | None,
    typer.Option("--calibration", metavar="FILE", help="Coefficients that `meshwright calibrate` made."),
]
RequestOption = Annotated[
    str | None,
    typer.Option("--request", metavar="FILE", help="Request in YAML; other flags win over its keys."),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME|PATH", help="Catalogue name or Hugging Face config.json."),
]
ClusterOption = Annotated[
    str | None, typer.Option("--cluster", metavar="NAME|PATH", help="Catalogue name or YAML file.")
]
NodesOption = Annotated[int | None, typer.Option("--nodes", help="Number of nodes.")]
DevicesPerNodeOption = Annotated[
    int | None,
    typer.Option("--devices-per-node", help="Devices used of every node, such as 64 of 72; all by default."),
]
SeqLenOption = Annotated[int | None, typer.Option("--seq-len", help="Tokens per sequence.")]
GlobalBatchOption = Annotated[
    int | None, typer.Option("--global-batch", help="Sequences per optimizer step.")
]
PrecisionOption = Annotated[
    str | None,
    typer.Option("--precision", help="bf16 (default), fp16, fp8, mxfp8, fp8-block, nvfp4 or fp32."),
]
StackOption = Annotated[str | None, typer.Option("--stack", help="Software stack; megatron-core by default.")]
OptimizerOption = Annotated[str | None, typer.Option("--optimizer", help="adam.")]
CatalogOption = Annotated[
    list[str] | None,
    typer.Option(
        "--catalog", metavar="DIR", help="Folder with further devices, nodes, clusters; repeatable."
    ),
]
FacilityFlag = Annotated[
    str | None,
    typer.Option(
        "--facility",
        metavar="KEY=VALUE,...",
        help="Count the site too: pue, host_w_per_device, usd_per_kwh, kg_co2_per_kwh or region.",
    ),
]
OutputOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to write the file.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print exactly the file format on stdout.")]
