"""The real parsers, each in a process of its own: what is installed checks, what is not is skipped."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from planner.emit.verify.emitted import Emitted
from planner.emit.verify.engine_lines import engine_of
from planner.emit.verify.probe_input import probe_input
from planner.emit.verify.probe_process import ProbeError, probe_process
from planner.emit.verify.slurm import slurm_verdicts
from planner.emit.verify.verdict import Verdict

__all__ = ["parser_verdicts", "probes_of"]

_PROBES: dict[str, tuple[str, ...]] = {
    "megatron-lm": ("megatron", "torchrun"),
    "mindspeed": ("megatron", "torchrun"),
    "megatron-bridge": ("megatron_bridge", "torchrun"),
    "deepspeed": ("deepspeed", "torchrun"),
    "accelerate": ("accelerate",),
    "fsdp": ("torchrun",),
    "torchtitan": ("torchtitan", "torchrun"),
}
_ENGINES = ("vllm", "sglang")


def probes_of(emitted: Emitted) -> tuple[str, ...]:
    """Return the names of the real parsers that apply."""
    names = list(_PROBES.get(emitted.target, ()))
    if emitted.plan.kind == "serve":
        names = [engine_of(emitted)] if engine_of(emitted) in _ENGINES else []
    if emitted.scheduler == "kubernetes" and emitted.target != "llm-d":
        names.append("kubernetes")
    if emitted.scheduler == "skypilot":
        names.append("skypilot")
    if "serve_config.yaml" in emitted.files:
        names.append("ray")
    return tuple(names)


def parser_verdicts(emitted: Emitted, pythons: Sequence[str] = ()) -> list[Verdict]:
    """Return what every real parser at hand says.

    Parameters
    ----------
    pythons : interpreters whose packages are used, each parser's first that has it; none is this one.
    """
    given = json.dumps(probe_input(emitted))
    verdicts = [_first(emitted, name, pythons or (sys.executable,), given) for name in probes_of(emitted)]
    return [*verdicts, *_shell_verdicts(emitted), *slurm_verdicts(emitted)]


def _first(emitted: Emitted, name: str, pythons: Sequence[str], given: str) -> Verdict:
    """Return the first verdict that is not a skip; else the skip that says most."""
    skips = []
    for python in pythons:
        if name in _ENGINES:
            verdict = _engine_verdict(name, python, given)
        else:
            verdict = _run(name, python, emitted.folder.resolve(), given)
        if verdict.verdict != "skip":
            return verdict
        skips.append(verdict)
    return max(skips, key=lambda v: "is not installed" not in " ".join(v.problems))


@lru_cache(maxsize=64)
def _engine_verdict(name: str, python: str, given: str) -> Verdict:
    """Return what an engine says of command lines; it reads the model's config.json and no emitted file."""
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "config.json").write_text(json.dumps(json.loads(given)["model"]), encoding="utf-8")
        return _run(name, python, Path(work), given)


def _run(name: str, python: str, place: Path, given: str) -> Verdict:
    try:
        said = probe_process(name, python).ask(place, given)
    except ProbeError as error:
        return Verdict(checker=name, version="", verdict="skip", problems=(str(error),))
    return Verdict(
        checker=said.get("checker", name),
        version=said.get("version", ""),
        verdict=said["verdict"],
        files=tuple(said.get("files", ())),
        problems=tuple(said["problems"]),
    )


def _shell_verdicts(emitted: Emitted) -> list[Verdict]:
    scripts = sorted(n for n in emitted.files if n.endswith((".sh", ".sbatch")))
    found = []
    for tool, words in (("bash", ["-n"]), ("shellcheck", ["-x"])):
        if not scripts:
            continue
        path = shutil.which(tool)
        if path is None:
            found.append(Verdict(checker=tool, version="", verdict="skip", problems=("not installed",)))
            continue
        problems = []
        for script in scripts:
            done = subprocess.run(
                [path, *words, script], capture_output=True, text=True, cwd=emitted.folder, check=False
            )
            if done.returncode:
                problems.append(f"{script}: {(done.stdout + done.stderr).strip()[:400]}")
        found.append(Verdict.of(tool, "", tuple(scripts), problems))
    return found
