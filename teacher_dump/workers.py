"""Which of several processes this is, as their launcher says it: torchrun and Accelerate, Slurm, or Open MPI.

The processes share nothing but the dump's folder. What the launcher says only chooses the device and the label.
"""

import os
from dataclasses import dataclass

# (rank, rank on this machine, number of processes)
_LAUNCHERS = (
    ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
)


@dataclass(frozen=True)
class Worker:
    """One of `count` processes; `local_rank` counts those of this machine."""

    rank: int = 0
    local_rank: int = 0
    count: int = 1

    def label(self, name: str) -> str:
        """How its progress is to be told from that of the others."""
        return name if self.count == 1 else f"{name} {self.rank + 1}/{self.count}"


def worker() -> Worker:
    """This process; alone where no launcher started it."""
    for names in _LAUNCHERS:
        values = [os.environ.get(name, "") for name in names]
        if all(value.isdecimal() for value in values) and int(values[0]) < int(values[2]):
            return Worker(*map(int, values))
    return Worker()
