"""The figures of a benchmark, printed as a table and written to benchmarks/out/NAME.json."""

import json
import os
import platform
from dataclasses import asdict, dataclass

import torch
from settings import OUT


@dataclass(frozen=True)
class Figure:
    """One measured figure against its baseline, both medians of `runs` interleaved runs."""

    figure: str
    value: float
    baseline: float
    target: float
    higher_is_better: bool
    unit: str
    runs: int

    @property
    def ratio(self) -> float:
        """value / baseline."""
        return self.value / self.baseline


def machine() -> str:
    """Processor, cores, memory and GPU, in words."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, {gpu}"


def write_figures(name: str, figures: list[Figure]) -> None:
    """Print the table and write the file."""
    print(f"\n{'figure':<64}{'value':>10}{'baseline':>10}{'ratio':>8}{'target':>8}")
    for figure in figures:
        sign = ">=" if figure.higher_is_better else "<="
        print(
            f"{figure.figure:<64}{_short(figure.value):>10}{_short(figure.baseline):>10}{figure.ratio:>8.3f}"
            f"{f'{sign}{figure.target:.3g}':>8}  {figure.unit}"
        )
    file = OUT / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    rows = [{**asdict(figure), "ratio": figure.ratio, "machine": machine()} for figure in figures]
    file.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"written to {file}")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
