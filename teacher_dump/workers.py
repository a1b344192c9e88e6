"""The rank of this process among several, from the environment that torchrun, Accelerate, Slurm or Open MPI set.

The processes share nothing but the dump's folder. In a local folder, ranks only decide about devices and labels.
"""

import os
from dataclasses import dataclass

# Environment variables of (rank, rank on this machine, number of processes).
_LAUNCHERS = (
    ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
)


@dataclass(frozen=True)
class Worker:
    """One of `count` processes; `local_rank` is its number among those of this machine."""

    rank: int = 0
    local_rank: int = 0
    count: int = 1

    def label(self, name: str) -> str:
        """The name, with the number of the process if there are several."""
        return name if self.count == 1 else f"{name} {self.rank + 1}/{self.count}"


def worker() -> Worker:
    """This process; the only one if no launcher has started it."""
    for names in _LAUNCHERS:
        values = [os.environ.get(name, "") for name in names]
        if all(value.isdecimal() for value in values) and int(values[0]) < int(values[2]):
            return Worker(*map(int, values))
    return Worker()
