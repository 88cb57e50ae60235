"""An emission read back from its folder: manifest, plan, files; nothing of it is trusted."""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from hardware.errors import InputError, SpecError
from planner.emit.emit_plan import MANIFEST
from planner.emit.targets import find_target
from planner.plan import PlanFile
from planner.plan_io import read_plan

__all__ = ["Emitted", "read_emitted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """One folder that `emit` wrote."""

    folder: Path
    target: str
    version: str
    scheduler: str
    plan_number: int
    manifest: dict[str, Any]
    plan: PlanFile[Any]
    plan_sha256: str
    files: dict[str, str]
    """Text of every file that the manifest names and that is there."""

    @property
    def best(self) -> Any:
        """The plan that was emitted."""
        return self.plan.plans[self.plan_number - 1]


def read_emitted(folder: Path) -> Emitted:
    """Return what `folder` holds.

    Raises
    ------
    InputError, SpecError
        if it is no folder that `emit` wrote.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = (
            f"{path}: cannot be read: {error.strerror}; verify takes a folder that `meshwright emit` wrote"
        )
        raise InputError(message) from None
    except ValueError as error:
        message = f"{path}: is no JSON: {error}"
        raise InputError(message) from None
    wanted = {"target": str, "version": str, "scheduler": str, "plan_number": int, "files": list}
    problems = [
        f"{k}: is missing or no {t.__name__}" for k, t in wanted.items() if not isinstance(manifest.get(k), t)
    ]
    if problems:
        raise SpecError(str(path), problems)
    find_target(f"{manifest['target']}@{manifest['version']}")
    plan = read_plan(folder / "plan.json")
    if not 1 <= manifest["plan_number"] <= len(plan.plans):
        raise SpecError(str(path), [f"plan_number: {manifest['plan_number']} of {len(plan.plans)}"])
    names = [n for n in manifest["files"] if isinstance(n, str) and (folder / n).is_file()]
    return Emitted(
        folder=folder,
        target=manifest["target"],
        version=manifest["version"],
        scheduler=manifest["scheduler"],
        plan_number=manifest["plan_number"],
        manifest=manifest,
        plan=plan,
        plan_sha256=sha256((folder / "plan.json").read_bytes()).hexdigest(),
        files={n: (folder / n).read_text(encoding="utf-8") for n in names},
    )
