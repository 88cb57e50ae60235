"""Which rank this process is, told by whatever launched it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hardware.errors import InputError

__all__ = ["Ranks", "ranks_of"]

_LAUNCHERS = (
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The place of this process among those that work together."""

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0
    launcher: str = ""


def ranks_of(environment: Mapping[str, str] | None = None) -> Ranks:
    """Return the rank that torchrun, mpirun, mpiexec or srun gave this process; alone without any.

    Raises
    ------
    InputError
        if several ranks run and nothing says where they meet (MASTER_ADDR).

    Examples
    --------
    >>> ranks_of({"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost"}).rank
    3
    """
    known = os.environ if environment is None else environment
    for launcher, rank, size, local in _LAUNCHERS:
        if rank not in known or size not in known:
            continue
        found = Ranks(
            rank=int(known[rank]),
            num_ranks=int(known[size]),
            local_rank=int(known.get(local, known[rank])),
            launcher=launcher,
        )
        if found.num_ranks > 1 and "MASTER_ADDR" not in known:
            message = (
                f"{launcher} started {found.num_ranks} ranks, but MASTER_ADDR is not set: export the first "
                "host's name as MASTER_ADDR and a free port as MASTER_PORT"
            )
            raise InputError(message)
        return found
    return Ranks()
