"""`meshwright profile`: measure this machine or, under a launcher, a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.errors import readable_errors

__all__ = ["profile"]


def profile(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Samples file; a file that exists goes on.")
    ],
    what: Annotated[
        list[str] | None,
        typer.Option(
            "--what", help="kernels, memory, collectives, transfers, storage, steps; repeat or use commas."
        ),
    ] = None,
    backend: Annotated[str, typer.Option("--backend", help="numpy, cpu, cuda, rocm or npu.")] = "numpy",
    ranks: Annotated[
        int | None, typer.Option("--ranks", help="Start so many processes here; not under a launcher.", min=1)
    ] = None,
    threads: Annotated[int, typer.Option("--threads", help="Threads per rank on a processor.", min=1)] = 1,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="PLAN", help="Only the shapes of this plan.")
    ] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Time to spend.", min=0.0)] = None,
    device: Annotated[str | None, typer.Option("--device", help="Name to file the samples under.")] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Repeats of every shape.", min=3)] = 7,
) -> None:
    """Measure kernels, memory, collectives, transfers or whole steps; most uncertain first."""
    with readable_errors():
        from planner.profiling.profile import ProfileRequest, profile_here

        words = tuple(word for entry in what or () for word in entry.split(",") if word)
        asked = ProfileRequest(
            output=output, what=words, backend=backend, ranks=ranks, threads=threads, plan=plan,
            minutes=minutes, device=device, repeats=repeats,
        )  # fmt: skip
        found = profile_here(asked)
        if found is None:
            return
        for note in found.notes:
            typer.echo(f"note: {note}", err=True)
        typer.echo(
            f"{found.num_measured} shapes measured, {found.num_failed} failed, {found.num_known} known, "
            f"{found.num_left} left: {output}",
            err=True,
        )
        if found.num_retaken:
            typer.echo(
                f"note: others used the machine: {found.num_retaken} measurements were taken again, "
                f"{found.num_disturbed} samples are disturbed all the same (others_frac, slowdown_frac)",
                err=True,
            )
