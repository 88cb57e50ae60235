"""The flow of `meshwright calibrate`: samples files and a cluster, given or described, to a document."""

from pathlib import Path
from typing import Any

from costmodels.calibration.file import calibrate, read_calibration
from costmodels.samples import Sample, read_samples
from hardware.catalog import find_cluster
from hardware.errors import InputError, OutOfDomainError
from planner.plan_io import write_text
from planner.profiling.local_cluster import local_cluster_text

__all__ = ["calibrate_files"]


def calibrate_files(
    paths: list[Path],
    *,
    cluster: str | None,
    nodes: int | None = None,
    write_cluster: Path | None = None,
    statistic: str = "median",
    like: Path | None = None,
    catalogs: tuple[str, ...] = (),
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the calibration document of several samples files, and what a reader must know.

    Raises
    ------
    InputError
        if neither a cluster nor a place to describe one is given.
    SpecError
        if the samples cannot be used.
    """
    if (cluster is None) == (write_cluster is None):
        message = "give --cluster NAME|PATH, or --write-cluster FILE to have this machine described; not both"
        raise InputError(message)
    files = [read_samples(path) for path in paths]
    samples: list[Sample] = [s for file in files for s in file.samples]
    notes = [note for file in files for note in file.notes]
    failed = sum(len(file.failed) for file in files)
    if failed:
        notes.append(f"{failed} shapes failed when they were measured and are left out")
    where = ", ".join(str(p) for p in paths)
    if not samples:
        message = f"{where}: no sample with a time"
        raise OutOfDomainError(message)
    if write_cluster is not None:
        write_text(local_cluster_text(samples), write_cluster)
        cluster = str(write_cluster)
    found = find_cluster(str(cluster), nodes, catalogs=catalogs)
    document = calibrate(
        samples,
        found,
        statistic=statistic,
        like=None if like is None else read_calibration(like),
        where=where,
    )
    return document, (*notes, *document["notes"])
