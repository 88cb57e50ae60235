"""`meshwright import`: what other programs print becomes a cluster file; a running job, a strategy."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.errors import readable_errors
from planner.cli.options import CatalogOption, OutputOption

__all__ = ["import_files"]

KindArgument = Annotated[
    str,
    typer.Argument(
        metavar="KIND",
        help="mpigraph, nccl-tests, nvidia-smi-topo, rocm-smi, npu-smi, nccl-xml; "
        "megatron-args, deepspeed, vllm; nccl-samples, rccl-samples, osu, megatron-log, deepspeed-log.",
    ),
]
FilesArgument = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Outputs of that tool; several merge.")
]
NodeOption = Annotated[
    str | None,
    typer.Option("--node", metavar="TEMPLATE", help="Node template of the hosts that were measured."),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="Device whose data sheet gives the links' rates."),
]
NameOption = Annotated[str, typer.Option("--name", help="Name of the cluster.")]
SamplesOption = Annotated[
    Path | None, typer.Option("--samples", metavar="FILE", help="Also write collective measurements as CSV.")
]


def import_files(
    kind: KindArgument,
    files: FilesArgument,
    node: NodeOption = None,
    device: DeviceOption = None,
    name: NameOption = "imported",
    samples: SamplesOption = None,
    output: OutputOption = None,
    ranks: Annotated[int | None, typer.Option("--ranks", help="Ranks that took part (osu).")] = None,
    catalog: CatalogOption = None,
) -> None:
    """Turn what a measuring tool printed into a cluster file, or a running job's files into a strategy."""
    with readable_errors():
        from planner.emit.readers import KINDS

        if kind in KINDS:
            _import_job(kind, files, output)
            return
        from planner.measurement_import import KINDS as MEASUREMENTS

        if kind in MEASUREMENTS:
            _import_measurements(kind, files, device, ranks, output)
            return
        from hardware.errors import InputError, UnknownNameError
        from hardware.importers.cluster_text import KINDS as CLUSTER_KINDS
        from hardware.importers.cluster_text import imported_cluster, imported_runs
        from hardware.importers.nccl_tests import samples_text
        from planner.plan_io import write_text

        if samples is not None and kind != "nccl-tests":
            message = f"--samples belongs to nccl-tests; {kind} measures no collectives"
            raise InputError(message)
        if kind not in CLUSTER_KINDS:
            raise UnknownNameError("kind of file to import", kind, (*CLUSTER_KINDS, *KINDS, *MEASUREMENTS))
        text = imported_cluster(
            kind, files, node=node, device=device, name=name, catalogs=tuple(catalog or ())
        )
        if samples is not None:
            write_text(samples_text(imported_runs(files)), samples)
        if output is None:
            typer.echo(text, nl=False)
        else:
            write_text(text, output)


def _import_job(kind: str, files: list[Path], output: Path | None) -> None:
    from hardware.errors import InputError
    from planner.emit.readers import read_running_job
    from planner.emit.running_job_text import running_job_text
    from planner.plan_io import write_text

    if len(files) > 1:
        message = f"import {kind}: one file at a time, not {len(files)}"
        raise InputError(message)
    text = running_job_text(read_running_job(kind, files[0]))
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(text, output)


def _import_measurements(
    kind: str, files: list[Path], device: str | None, ranks: int | None, output: Path | None
) -> None:
    from planner.measurement_import import imported_text
    from planner.plan_io import write_text

    text = imported_text(kind, files, device=device, ranks=ranks)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(text, output)
