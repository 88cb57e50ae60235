"""Which rank this process is, told by whatever launched it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hardware.errors import InputError

__all__ = ["Ranks", "first_host", "ranks_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Launcher:
    """The variables in which one launcher says who is who."""

    name: str
    rank: str
    size: str
    local_rank: str
    local_size: str = ""


_LAUNCHERS = (
    _Launcher(
        name="torchrun", rank="RANK", size="WORLD_SIZE", local_rank="LOCAL_RANK",
        local_size="LOCAL_WORLD_SIZE",
    ),
    _Launcher(
        name="mpirun", rank="OMPI_COMM_WORLD_RANK", size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK", local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Launcher(
        name="mpiexec", rank="PMI_RANK", size="PMI_SIZE", local_rank="MPI_LOCALRANKID",
        local_size="MPI_LOCALNRANKS",
    ),
    _Launcher(name="srun", rank="SLURM_PROCID", size="SLURM_STEP_NUM_TASKS", local_rank="SLURM_LOCALID"),
)  # fmt: skip
"""torchrun, Open MPI, MPICH and Intel MPI (Hydra), Slurm."""
_NODE_LISTS = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
_HERE = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The place of this process among those that work together."""

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0
    launcher: str = ""
    meeting: str = ""
    """Host at which the ranks find each other; empty for one rank."""


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list.

    Examples
    --------
    >>> first_host("gpu[007-010,12],cpu1"), first_host("alone,other"), first_host("rack[2]n[1,3]")
    ('gpu007', 'alone', 'rack2n1')
    """
    depth, end = 0, len(nodes)
    for place, letter in enumerate(nodes):
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            end = place
            break
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodes[:end])


def _meeting(known: Mapping[str, str], launcher: _Launcher, num_ranks: int) -> str:
    """Return the host of the first rank, as far as the launcher says; empty where it does not."""
    if num_ranks == 1 or "MASTER_ADDR" in known:
        return known.get("MASTER_ADDR", "")
    if known.get(launcher.local_size) == str(num_ranks):
        return _HERE
    nodes = next((known[n] for n in _NODE_LISTS if n in known), "") if launcher.name == "srun" else ""
    return first_host(nodes)


def ranks_of(environment: Mapping[str, str] | None = None) -> Ranks:
    """Return the rank that torchrun, mpirun, mpiexec or srun gave this process; alone without any.

    Raises
    ------
    InputError
        if several ranks run and nothing says where they meet.

    Examples
    --------
    >>> ranks_of({"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost"}).rank
    3
    """
    known = os.environ if environment is None else environment
    for launcher in _LAUNCHERS:
        if launcher.rank not in known or launcher.size not in known:
            continue
        num_ranks = int(known[launcher.size])
        found = Ranks(
            rank=int(known[launcher.rank]),
            num_ranks=num_ranks,
            local_rank=int(known.get(launcher.local_rank, known[launcher.rank])),
            launcher=launcher.name,
            meeting=_meeting(known, launcher, num_ranks),
        )
        if num_ranks > 1 and not found.meeting:
            message = (
                f"{launcher.name} started {num_ranks} ranks, but does not say where they meet: export the "
                "first host's name as MASTER_ADDR (and a free port as MASTER_PORT)"
            )
            raise InputError(message)
        return found
    return Ranks()
