"""The real parsers, each in a process of its own: what is installed checks, what is not is skipped."""

import json
import shutil
import subprocess
import sys
from importlib.resources import files

from planner.emit.verify.emitted import Emitted
from planner.emit.verify.verdict import Verdict

__all__ = ["parser_verdicts", "probes_of"]

_PROBES: dict[str, tuple[str, ...]] = {
    "megatron-lm": ("megatron", "torchrun"),
    "mindspeed": ("torchrun",),
    "megatron-bridge": ("torchrun",),
    "deepspeed": ("deepspeed", "torchrun"),
    "accelerate": ("accelerate",),
    "fsdp": ("torchrun",),
    "torchtitan": ("torchtitan", "torchrun"),
    "vllm": ("vllm",),
    "sglang": ("sglang",),
    "tensorrt-llm": (),
    "dynamo": (),
    "llm-d": (),
}
_TIME_LIMIT_S = 180.0


def probes_of(target: str, scheduler: str) -> tuple[str, ...]:
    """Return the names of the real parsers that apply."""
    more = ("kubernetes",) if scheduler == "kubernetes" and target not in ("dynamo", "llm-d") else ()
    return (*_PROBES[target], *more)


def parser_verdicts(emitted: Emitted, python: str | None = None) -> list[Verdict]:
    """Return what every real parser at hand says.

    Parameters
    ----------
    python : interpreter whose packages are used; None is this one.
    """
    names = probes_of(emitted.target, emitted.scheduler)
    verdicts = [_probe(emitted, name, python or sys.executable) for name in names]
    return [*verdicts, *_shell_verdicts(emitted), *_slurm_verdicts(emitted)]


def _probe(emitted: Emitted, name: str, python: str) -> Verdict:
    program = files("planner.emit.verify").joinpath("probes", f"{name}.py.txt").read_text(encoding="utf-8")
    try:
        done = subprocess.run(
            [python, "-c", program, str(emitted.folder.resolve())],
            capture_output=True,
            text=True,
            timeout=_TIME_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Verdict(checker=name, version="", verdict="skip", problems=(f"not run: {error}",))
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"verdict"')]
    if not lines:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return Verdict(
            checker=name, version="", verdict="skip", problems=(f"the parser did not run: {reason}",)
        )
    said = json.loads(lines[-1])
    return Verdict(
        checker=said.get("checker", name),
        version=said.get("version", ""),
        verdict=said["verdict"],
        files=tuple(said.get("files", ())),
        problems=tuple(said.get("problems", ())),
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


def _slurm_verdicts(emitted: Emitted) -> list[Verdict]:
    """Return what sbatch says of the options; it reads them before it looks for a controller."""
    scripts = sorted(n for n in emitted.files if n.endswith(".sbatch"))
    if not scripts:
        return []
    path = shutil.which("sbatch")
    if path is None:
        return [Verdict(checker="sbatch", version="", verdict="skip", problems=("not installed",))]
    problems = []
    for script in scripts:
        done = subprocess.run(
            [path, "--test-only", script], capture_output=True, text=True, cwd=emitted.folder, check=False
        )
        said = done.stderr.strip()
        if any(word in said for word in ("configuration source", "contact slurm controller")):
            reason = "no Slurm configuration here"
            return [Verdict(checker="sbatch", version="", verdict="skip", problems=(reason,))]
        if done.returncode:
            problems.append(f"{script}: {said[:400]}")
    return [Verdict.of("sbatch", "", tuple(scripts), problems)]
