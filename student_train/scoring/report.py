"""The scores of one model, as plain values for JSON and as a table for people."""

from dataclasses import asdict, dataclass, field
from typing import Any

from shared.text.groups import GroupScores
from student_train.recipe.decoding import Decode


@dataclass(frozen=True)
class Report:
    """Scores of one model.

    Attributes:
        rows: number of rows of the data; for question answering, windows of contexts.
        questions: number of questions that the rows belong to; None for other tasks.
        metrics: name -> value of the task's metrics, the main one first.
        agreement: share of a dump's recorded positions where the model's most probable class is the teacher's; None
            without a dump.
        divergence: mean KL(teacher || student) over these positions, in nats.
        groups: the scores of each group of rows, if a column names groups.
        latency_ms: batch size -> median milliseconds of a forward pass in torch for so many rows of the data.
        onnxruntime_latency_ms: the same in onnxruntime, from the folder's model.onnx; empty if there is none.
        decode: how the metrics' predictions were made of logits. (The agreement is about the most probable classes.)
        threads: number of threads for both latencies.
    """

    model: str
    task: str
    rows: int
    metrics: dict[str, float]
    parameters: int
    latency_ms: dict[int, float]
    device: str
    threads: int
    agreement: float | None = None
    divergence: float | None = None
    groups: GroupScores | None = None
    onnxruntime_latency_ms: dict[int, float] = field(default_factory=dict)
    questions: int | None = None
    decode: Decode = "argmax"

    @property
    def counted(self) -> str:
        """The number of rows that the model was scored on, in words."""
        of = "" if self.questions is None else f" (windows of {self.questions:,} questions' contexts)"
        return f"{self.rows:,} rows{of}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        latencies = {
            name: {str(size): value for size, value in getattr(self, name).items()}
            for name in ("latency_ms", "onnxruntime_latency_ms")
        }
        groups = self.groups and {**asdict(self.groups), "mean": self.groups.mean}
        return {**self.__dict__, **latencies, "groups": groups}

    def table(self) -> list[tuple[str, str]]:
        """Return (name, value) of all scores, formatted for people."""
        lines = [(name.replace("_", " "), f"{value:.4g}") for name, value in self.metrics.items()]
        if self.groups is not None:
            over = f"over {len(self.groups.metrics)} {self.groups.column}"
            lines += [
                (f"mean {name.replace('_', ' ')} {over}", f"{value:.4g}") for name, value in self.groups.mean.items()
            ]
        if self.decode != "argmax":
            lines.append(("decoded by", self.decode))
        if self.agreement is not None:
            lines.append(("agreement with the teacher", f"{self.agreement:.4f}"))
        if self.divergence is not None:
            lines.append(("KL to the teacher, nats", f"{abs(self.divergence):.4f}"))
        lines.append(("parameters", f"{self.parameters:,}"))
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        for runtime, latency_ms in (("torch", self.latency_ms), ("onnxruntime", self.onnxruntime_latency_ms)):
            for size, value in latency_ms.items():
                text = f"{value:.3g}" if value < 100 else f"{value:,.0f}"
                lines.append((f"{runtime}, batch {size}, {threads}", f"{text} ms"))
        return lines
