"""Run every check that applies to an emission and write the receipt beside the files."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from planner.emit.verify.emitted import Emitted, read_emitted
from planner.emit.verify.parsers import parser_verdicts
from planner.emit.verify.schema_check import schema_verdict
from planner.emit.verify.verdict import Verdict
from planner.plan_io import write_text

__all__ = ["RECEIPT", "own_verdicts", "verify_folder"]

RECEIPT = "verify.json"


def own_verdicts(emitted: Emitted) -> list[Verdict]:
    """Return the checks that need nothing but this program."""
    verdicts = [_whole(emitted), schema_verdict(emitted)]
    if verdicts[0].verdict == "fail" or verdicts[1].verdict == "fail":
        return verdicts
    if emitted.plan.kind == "train":
        from planner.emit.verify.training_check import training_verdicts

        return verdicts + training_verdicts(emitted)
    from planner.emit.verify.serving_check import serving_verdicts

    return verdicts + serving_verdicts(emitted)


def _whole(emitted: Emitted) -> Verdict:
    missing = [f"{n}: is missing" for n in emitted.manifest["files"] if n not in emitted.files]
    if emitted.manifest.get("plan_sha256") != emitted.plan_sha256:
        missing.append("plan.json: is not the plan that the files were made from")
    return Verdict.of("meshwright manifest", emitted.version, ("emission.json",), missing)


def verify_folder(
    folder: str | os.PathLike[str], *, pythons: Sequence[str] = (), parsers: bool = True
) -> list[Verdict]:
    """Return all verdicts on a folder that `emit` wrote, and write them to its receipt.

    Parameters
    ----------
    pythons : interpreters with the frameworks' packages; none is this one.

    Raises
    ------
    InputError
        if the folder is no emission.
    """
    emitted = read_emitted(Path(folder))
    verdicts = own_verdicts(emitted)
    if parsers and verdicts[0].verdict == "pass":
        verdicts += parser_verdicts(emitted, pythons)
    document = {
        "schema_version": 1,
        "plan_sha256": emitted.plan_sha256,
        "target": emitted.target,
        "version": emitted.version,
        "scheduler": emitted.scheduler,
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }
    write_text(json.dumps(document, indent=2) + "\n", Path(folder) / RECEIPT)
    return verdicts
