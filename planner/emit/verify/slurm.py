"""`sbatch --test-only` on batch scripts: by the site's own controller, else by one for the planned nodes.

The made one runs in a temporary folder, without authentication, on nodes that exist in its configuration
only; test-only mode then checks options, node counts and devices and starts nothing.
"""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from getpass import getuser
from os import environ
from pathlib import Path

from planner.emit.accelerator_names import slurm_gres
from planner.emit.serving_launch import DEVICES_PER_HOST
from planner.emit.verify.emitted import Emitted
from planner.emit.verify.training_check import launch_of
from planner.emit.verify.verdict import Verdict

__all__ = ["slurm_verdicts"]

_CONFIGURATION = """ClusterName=planned
SlurmctldHost=localhost
AuthType=auth/none
CryptoType=crypto/none
CredType=cred/none
SlurmUser={user}
SlurmctldPort={port}
SlurmdPort={second_port}
StateSaveLocation={folder}
SlurmdSpoolDir={folder}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SelectType=select/cons_tres
GresTypes=gpu
ResumeProgram=/bin/true
SuspendProgram=/bin/true
SuspendTime=600
NodeName={nodes} CPUs=64 RealMemory=1000000 Gres={gres} State=CLOUD
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_START_LIMIT_S = 15.0


def slurm_verdicts(emitted: Emitted) -> list[Verdict]:
    """Return what Slurm says of the batch scripts; nothing where there are none."""
    scripts = sorted(n for n in emitted.files if n.endswith(".sbatch"))
    if not scripts:
        return []
    if shutil.which("sbatch") is None:
        return [_skipped("sbatch is not installed")]
    problems = _problems(emitted, scripts, dict(environ))
    if problems is not None:
        return [Verdict.of("sbatch", _version(), tuple(scripts), problems)]
    if shutil.which("slurmctld") is None:
        return [_skipped("no Slurm cluster is configured here, and slurmctld is not installed")]
    with _controller(emitted) as configuration:
        if configuration is not None:
            problems = _problems(emitted, scripts, {**environ, "SLURM_CONF": configuration})
    if problems is None:
        return [_skipped("no Slurm cluster is configured here, and slurmctld did not start")]
    return [Verdict.of("sbatch", _version(), tuple(scripts), problems)]


def _skipped(reason: str) -> Verdict:
    return Verdict(checker="sbatch", version="", verdict="skip", problems=(reason,))


def _version() -> str:
    tool = shutil.which("slurmctld") or shutil.which("sinfo")
    if tool is None:
        return ""
    done = subprocess.run([tool, "-V"], capture_output=True, text=True, check=False)
    return done.stdout.removeprefix("slurm-wlm ").strip() if done.returncode == 0 else ""


def _problems(emitted: Emitted, scripts: list[str], environment: dict[str, str]) -> list[str] | None:
    """Return what is refused; None where no controller answers."""
    problems = []
    for script in scripts:
        done = subprocess.run(
            ["sbatch", "--test-only", script],
            capture_output=True,
            text=True,
            cwd=emitted.folder,
            env=environment,
            check=False,
        )
        said = done.stderr.strip()
        if any(word in said for word in ("configuration source", "contact slurm controller")):
            return None
        if done.returncode or "Warning" in said:
            problems.append(f"{script}: {said[:400]}")
    return problems


@contextmanager
def _controller(emitted: Emitted) -> Iterator[str | None]:
    """Yield the configuration of a controller that runs meanwhile; None where it does not start."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "slurm.conf"
        nodes, gres = _nodes(emitted)
        text = _CONFIGURATION.format(
            user=getuser(), folder=place, nodes=nodes, gres=gres, port=_free_port(), second_port=_free_port()
        )
        path.write_text(text, encoding="utf-8")
        environment = {**environ, "SLURM_CONF": str(path)}
        running = subprocess.Popen(
            ["slurmctld", "-D", "-c", "-f", str(path)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield str(path) if _answers(running, environment) else None
        finally:
            running.terminate()
            running.wait(timeout=30)


def _answers(running: "subprocess.Popen[bytes]", environment: dict[str, str]) -> bool:
    end = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < end and running.poll() is None:
        done = subprocess.run(["sinfo", "--noheader"], capture_output=True, env=environment, check=False)
        if done.returncode == 0:
            return True
        time.sleep(0.3)
    return False


def _nodes(emitted: Emitted) -> tuple[str, str]:
    """Return the names of the planned machines and their devices, as slurm.conf writes them."""
    if emitted.plan.kind == "train":
        launch = launch_of(emitted)
        names = emitted.files.get("hosts.txt", "").split()
        devices = max(len(host.devices) for host in launch.hosts)
        return ",".join(names), f"gpu:{slurm_gres(launch.device)}:{devices}"
    types = sorted({slurm_gres(entry.device) for entry in emitted.best.mix})
    count = sum(entry.count for entry in emitted.best.mix)
    largest = max(entry.config.get("tp", 1) * entry.config.get("pp", 1) * entry.config.get("dp", 1)
                  for entry in emitted.best.mix)  # fmt: skip
    machines = count * -(-largest // DEVICES_PER_HOST)
    return f"machine[1-{machines}]", ",".join(f"gpu:{name}:{DEVICES_PER_HOST}" for name in types)


def _free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
