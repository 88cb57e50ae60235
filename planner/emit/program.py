"""What every host of a training job runs, before a scheduler is chosen: `train.sh` and the files it reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from planner.emit.emission import Caveat, Emission, header
from planner.emit.network import network_environment
from planner.emit.shell import FIRST_LINES, array, exports
from planner.emit.training_launch import TrainingLaunch

__all__ = ["Program", "program_emission"]

_HERE = 'cd "$(dirname "${BASH_SOURCE[0]}")"\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One framework's command and configuration for a plan."""

    entry: str
    """Words after the launcher, as bash: the script, or ``-m module``."""
    arguments: tuple[str, ...] = ()
    """One line each, as bash words: everything that the plan decides."""
    run_arguments: tuple[str, ...] = ()
    """What the plan does not decide (data, learning rate, number of steps), for the user to edit."""
    environment: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    """Variables that must not be set."""
    files: Mapping[str, str] = field(default_factory=dict)
    commands: frozenset[str] = frozenset()
    caveats: tuple[Caveat, ...] = ()
    launcher: Literal["torchrun", "accelerate"] = "torchrun"


def program_emission(launch: TrainingLaunch, program: Program) -> Emission:
    """Return the files that start `program` on any one host, whatever starts the hosts."""
    environment, notes = network_environment(launch)
    caveats = (*program.caveats, *notes, *_launcher_caveats(launch, program))
    top = header(launch.origin, caveats)
    files = {
        "train.sh": FIRST_LINES + top + _train_script(launch, program),
        "env.sh": _environment_script(launch, program, environment),
        "run_args.sh": _run_arguments(launch, program),
        "hosts.txt": "".join(f"{host.name}\n" for host in launch.hosts),
        "ranks.tsv": "rank\thost\tdevice\n"
        + "".join(f"{rank}\t{host}\t{device}\n" for rank, host, device in _rank_rows(launch)),
        **program.files,
    }
    facts = {
        "world": launch.strategy.world,
        "rank_order": launch.rank_order,
        "num_hosts": len(launch.hosts),
        "planned_hosts": [host.planned_name for host in launch.hosts],
        "ranks_per_host": launch.ranks_per_host,
    }
    return Emission(
        files=files, commands=frozenset({"train.sh"}) | program.commands, caveats=caveats, facts=facts
    )


def _rank_rows(launch: TrainingLaunch) -> list[tuple[int, str, int]]:
    real = {host.planned_name: host.name for host in launch.hosts}
    return [(seat.rank, real[seat.host], seat.device) for seat in launch.seats]


def _launcher_caveats(launch: TrainingLaunch, program: Program) -> tuple[Caveat, ...]:
    if launch.is_grouped or program.launcher == "torchrun":
        return ()
    what = f"{program.launcher} numbers the ranks of a host consecutively, the files follow ranks.tsv instead"
    return (Caveat(feature="placement.ranks", instead=what),)


def _environment_script(launch: TrainingLaunch, program: Program, network: Mapping[str, str]) -> str:
    text = (
        "# shellcheck shell=bash\n"
        + header(launch.origin)
        + "# Sourced by train.sh. A variable that is set already keeps its value.\n"
    )
    if program.unset:
        text += f"unset {' '.join(program.unset)}\n"
    text += exports({**program.environment, **network})
    return text + _group_environment(launch)


def _group_environment(launch: TrainingLaunch) -> str:
    """Return what differs between groups of hosts: the adapters that each has."""
    from planner.emit.network import group_environment

    groups = list(dict.fromkeys((host.group, host.fabrics) for host in launch.hosts))
    if len(groups) < 2:
        return ""
    text = '# Adapters by island; NODE_RANK is set by train.sh.\ncase "${NODE_RANK:?}" in\n'
    for name, fabrics in groups:
        ranks = "|".join(str(i) for i, host in enumerate(launch.hosts) if host.group == name)
        lines = exports(group_environment(fabrics)).replace("export", "    export")
        text += f"  {ranks}) # {name}\n{lines}    ;;\n"
    return text + "esac\n"


def _run_arguments(launch: TrainingLaunch, program: Program) -> str:
    return (
        "# shellcheck shell=bash\n# shellcheck disable=SC2034\n"
        + header(launch.origin)
        + "# Yours to edit: data, tokenizer, learning rate, checkpoints, number of steps.\n"
        "# The plan decides none of these.\n" + array("RUN_ARGS", program.run_arguments)
    )


def _train_script(launch: TrainingLaunch, program: Program) -> str:
    text = (
        "# Starts the ranks of one host. Usage: train.sh NODE_RANK [MASTER_ADDR]; NODE_RANK is the line of\n"
        "# this host in hosts.txt, counted from 0.\n"
        "set -euo pipefail\n" + _HERE + "export NODE_RANK=${1:?usage: train.sh NODE_RANK [MASTER_ADDR]}\n"
        f"MASTER_ADDR=${{2:-{launch.hosts[0].name}}}\n"
        "MASTER_PORT=${MASTER_PORT:-29500}\n"
        "# shellcheck source=env.sh\nsource ./env.sh\n"
        "# shellcheck source=run_args.sh\nsource ./run_args.sh\n"
        f"ENTRY=({program.entry})\n" + array("ARGS", program.arguments)
    )
    if not launch.is_grouped:
        return text + _start_by_rank(launch)
    return text + _devices(launch) + _start(launch, program)


def _devices(launch: TrainingLaunch) -> str:
    """Return the lines that set NPROC and, where local ranks do not follow device numbers, the devices."""
    visible = "ASCEND_RT_VISIBLE_DEVICES" if launch.vendor == "huawei" else "CUDA_VISIBLE_DEVICES"
    shapes = {host.devices for host in launch.hosts}
    if len(shapes) == 1:
        devices = shapes.pop()
        lines = [f"NPROC={len(devices)}"]
        if devices != tuple(range(len(devices))):
            lines.append(f"export {visible}={','.join(map(str, devices))}")
        return "\n".join(lines) + "\n"
    text = 'case "$NODE_RANK" in\n'
    for devices in sorted(shapes):
        ranks = "|".join(str(i) for i, host in enumerate(launch.hosts) if host.devices == devices)
        text += f"  {ranks}) NPROC={len(devices)}; export {visible}={','.join(map(str, devices))} ;;\n"
    return text + '  *) echo "no host has node rank $NODE_RANK" >&2; exit 2 ;;\nesac\n'


def _start(launch: TrainingLaunch, program: Program) -> str:
    words = {
        "torchrun": [
            "torchrun",
            f"--nnodes {len(launch.hosts)}",
            '--nproc-per-node "$NPROC"',
            '--node-rank "$NODE_RANK"',
            '--master-addr "$MASTER_ADDR"',
            '--master-port "$MASTER_PORT"',
        ],
        "accelerate": [
            "accelerate launch",
            "--config_file accelerate.yaml",
            '--machine_rank "$NODE_RANK"',
            '--main_process_ip "$MASTER_ADDR"',
            '--main_process_port "$MASTER_PORT"',
        ],
    }[program.launcher]
    check = "" if program.launcher == "torchrun" else ': "$NPROC"\n'
    # What the plan decides comes last, so that it wins over a repetition and a sub-command ends the line.
    line = " \\\n  ".join([*words, '"${ENTRY[@]}" "${RUN_ARGS[@]}" "${ARGS[@]}"'])
    return f"{check}exec {line}\n"


def _start_by_rank(launch: TrainingLaunch) -> str:
    """Return the loop that starts each rank by itself, from ranks.tsv."""
    visible = "ASCEND_RT_VISIBLE_DEVICES" if launch.vendor == "huawei" else "CUDA_VISIBLE_DEVICES"
    return (
        "# The ranks of this host are not consecutive, which torchrun cannot number: each starts by itself.\n"
        "mapfile -t HOSTS < hosts.txt\n"
        f"export MASTER_ADDR MASTER_PORT WORLD_SIZE={launch.strategy.world}\n"
        "PIDS=()\nLOCAL=0\n"
        "while read -r rank host device; do\n"
        '  [ "$host" = "${HOSTS[NODE_RANK]}" ] || continue\n'
        f"  RANK=$rank LOCAL_RANK=0 {visible}=$device \\\n"
        '    python "${ENTRY[@]}" "${RUN_ARGS[@]}" "${ARGS[@]}" &\n'
        '  PIDS+=("$!")\n  LOCAL=$((LOCAL + 1))\n'
        "done < <(tail -n +2 ranks.tsv)\n"
        '[ "$LOCAL" -gt 0 ] || { echo "hosts.txt has no ranks on line $NODE_RANK" >&2; exit 2; }\n'
        "STATUS=0\n"
        'for pid in "${PIDS[@]}"; do wait "$pid" || STATUS=$?; done\nexit "$STATUS"\n'
    )
