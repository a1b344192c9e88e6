"""The held-out loss of small causal LMs trained on distributions that each rule selects, at equal bytes a token.

The teacher runs once over the text. Its distributions are stored by each rule at about 20, 40 and 80 bytes a token (in
a shard), and a student is trained on each, on the whole distributions, and on the text alone. There are two regimes
with the same number of steps: one pass over much text, and ten passes over a tenth of it (with the same draws in each
pass). All students of a seed start from the same weights and get the same batches.

    recipes/docstrings_lm/run.sh             (its first two commands make the text and the teacher)
    python benchmarks/selection.py           (one thread, about 90 minutes; if run again, it continues)

With QUICK=1: one seed, one pass over a tenth of the text. Writes benchmarks/out/selection.json, and every student to
benchmarks/out/selection-runs.json.
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import Figure, write_figures
from settings import OUT, QUICK, sized
from shard_of import bytes_per_position, write
from text_batches import order_of, padded
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from shared.dump.codecs import Draws, Selection, Sparse, SparseTargets, Threshold, TopK, counts_of, position_keys
from shared.dump.rowgroup import from_flat, join, to_flat
from shared.memory import keep_freed_memory
from student_train.losses import formulas

LM = Path("out/docstrings_lm")
SEEDS = sized((0, 1, 2), quick=(0,), tiny=(0,))
TOKENS = sized(240_000, quick=24_000, tiny=1_000)
PASSES = {"one pass": 1} if QUICK else {"one pass": 1, "ten passes": 10}
BYTES = (20, 40, 80)
LENGTH, ROWS, LEARNING_RATE, WARM_UP = 128, 4, 3e-3, 0.05
HELD_OUT_TOKENS, SLICE = 20_000, 2048
SAMPLED = "threshold, tail sampled"


@dataclass(frozen=True)
class Text:
    """Rows of ids, and the teacher's last hidden states hidden_ND (float16) at every position but the last of a row."""

    rows: list[list[int]]
    hidden_ND: Tensor
    offsets: list[int]

    @property
    def positions(self) -> int:
        """Positions with a next token."""
        return self.offsets[-1]


def main() -> None:
    """Measure everything that has not been measured yet, then print."""
    torch.set_num_threads(1)
    keep_freed_memory()
    OUT.mkdir(exist_ok=True)
    teacher = AutoModelForCausalLM.from_pretrained(LM / "teacher").eval()
    head_VD = teacher.get_output_embeddings().weight.detach()
    train = annotate(teacher, read("train", TOKENS))
    held_out = annotate(teacher, read("valid", HELD_OUT_TOKENS))
    file = OUT / f"selection-runs{'-quick' if QUICK else ''}.json"
    runs: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    done = {(run["regime"], run["method"], run["budget"], run["seed"]) for run in runs}
    compared = methods(train, head_VD)
    stored: dict[Sparse | None, tuple[dict[str, Any], float, float]] = {None: ({}, 0.0, 0.0)}
    for seed, (regime, passes), (method, budget, codec, loss) in product(SEEDS, PASSES.items(), compared):
        if (regime, method, budget, seed) in done:
            continue
        if codec not in stored:
            stored[codec] = keep(codec, train, head_VD)
        columns, size, ids = stored[codec]
        start = time.process_time()
        student = train_student(train, head_VD, codec, columns, loss, passes, seed)
        divergence, nats = score(student, held_out, head_VD)
        run = {"regime": regime, "method": method, "budget": budget, "seed": seed, "bytes": size, "ids": ids}
        run |= {"rule": codec.selection.describe() if codec else "", "kl": divergence, "loss": nats}
        runs.append(run | {"cpu_seconds": time.process_time() - start})
        file.write_text(json.dumps(runs, indent=1))
        print(f"{regime:<11}{method:<24}{size:6.1f} B  seed {seed}  KL {divergence:.4f}  {nats:.4f}", flush=True)
    report(runs, score(teacher, held_out, head_VD)[1])


def read(split: str, tokens: int) -> list[list[int]]:
    """Rows of ids from the recipe's text, in its order, up to a number of tokens."""
    tokenizer = AutoTokenizer.from_pretrained(LM / "data" / "tokenizer")
    rows: list[list[int]] = []
    with open(LM / "data" / f"{split}.jsonl") as lines:
        for line in lines:
            rows.append(tokenizer(json.loads(line)["text"], truncation=True, max_length=LENGTH)["input_ids"])
            tokens -= len(rows[-1])
            if tokens <= 0:
                break
    return [row for row in rows if len(row) > 1]


@torch.inference_mode()
def annotate(teacher: Any, rows: list[list[int]]) -> Text:
    """The teacher's last hidden states, from which its head computes every distribution."""
    hidden: dict[int, Tensor] = {}
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), ROWS):
        part = order[start : start + ROWS]
        ids_BL, mask_BL = padded([rows[index] for index in part])
        states_BLD = teacher.model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        for index, states_LD in zip(part, states_BLD, strict=True):
            hidden[index] = states_LD[: len(rows[index]) - 1].half()
    offsets = np.cumsum([0, *(len(row) - 1 for row in rows)]).tolist()
    return Text(rows, torch.cat([hidden[index] for index in range(len(rows))]), offsets)


def methods(text: Text, head_VD: Tensor) -> list[tuple[str, int, Sparse | None, str]]:
    """(name, budget in bytes, codec, loss) of each compared method."""
    rules: dict[str, tuple[Callable[[float], Selection], float, float]] = {
        SAMPLED: (lambda ids: Threshold(threshold=min(0.5, 0.5 / ids)), 1, 400),
        "threshold, tail a class": (lambda ids: Threshold(threshold=min(0.5, 0.5 / ids), tail="mass"), 1, 400),
        "top-k, tail a class": (lambda ids: TopK(k=round(ids)), 1, 400),
        "random draws": (lambda ids: Draws(draws=min(255, round(ids))), 1, 255),
    }
    found: list[tuple[str, int, Sparse | None, str]] = [("full", 0, None, "full"), ("text alone", 0, None, "text")]
    for budget in BYTES:
        for name, (rule, least, most) in rules.items():
            codec = fitted(rule, least, most, budget, text, head_VD)
            found.append((name, budget, codec, "sampled" if codec.samples else "class"))
            if name.startswith("top-k"):
                found.append(("top-k, renormalised", budget, codec, "renormalise"))
    return found


def fitted(
    rule: Callable[[float], Selection], least: float, most: float, budget: int, text: Text, head_VD: Tensor
) -> Sparse:
    """The codec whose shard takes `budget` bytes per position, or as near to it as possible, found by bisection."""
    sample = Text(text.rows[:100], text.hidden_ND[: text.offsets[100]], text.offsets[:101])
    for _ in range(9):
        middle = math.sqrt(least * most)
        codec = Sparse(name="distribution", selection=rule(middle), vocabulary=len(head_VD))
        least, most = (least, middle) if keep(codec, sample, head_VD)[1] > budget else (middle, most)
    return Sparse(name="distribution", selection=rule(least), vocabulary=len(head_VD))


@torch.inference_mode()
def keep(codec: Sparse | None, text: Text, head_VD: Tensor) -> tuple[dict[str, Any], float, float]:
    """(the columns, their bytes per position in a shard, ids per position) of a text."""
    assert codec is not None
    owners = torch.repeat_interleave(torch.tensor(text.offsets).diff())
    keys_N = position_keys(0, owners, torch.arange(text.positions) - torch.tensor(text.offsets)[owners])
    parts = [
        codec.encode(hidden.float() @ head_VD.T, keys)
        for hidden, keys in zip(text.hidden_ND.split(SLICE), keys_N.split(SLICE), strict=True)
    ]
    flat = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    columns = from_flat(codec.columns, flat)
    with tempfile.TemporaryDirectory() as folder:
        write(codec, columns, np.diff(text.offsets).tolist(), Path(folder))
        size = sum(bytes_per_position(codec, Path(folder), text.positions).values())
    return columns, size, float(flat[counts_of("distribution.entries")].mean())


def train_student(
    text: Text, head_VD: Tensor, codec: Sparse | None, stored: dict[str, Any], loss: str, passes: int, seed: int
) -> Any:
    """A 2 x 128 causal LM, trained on the first 1 / passes of the text, passes times over."""
    torch.manual_seed(seed)
    student = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(head_VD),
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=352,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=True,
        )
    )
    batches = order_of(text.rows[: len(text.rows) // passes], passes, ROWS, seed)
    optimizer = torch.optim.AdamW(student.parameters(), LEARNING_RATE, weight_decay=0.1, fused=True)
    warm_up = max(1, round(WARM_UP * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / len(batches))),
    )
    for part in batches:
        positions = torch.cat([torch.arange(text.offsets[row], text.offsets[row + 1]) for row in part])
        logits_NV, labels_N = logits_of(student, [text.rows[row] for row in part])
        if loss == "text":
            value = formulas.cross_entropy(logits_NV, labels_N)
        elif loss == "full":
            value = formulas.kl_dense(logits_NV, text.hidden_ND[positions].float() @ head_VD.T)
        else:
            value = loss_against(logits_NV, targets_of(codec, stored, text, part), loss)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return student


def targets_of(codec: Sparse | None, stored: dict[str, Any], text: Text, part: list[int]) -> SparseTargets:
    """The decoded targets of some rows."""
    assert codec is not None
    cut = {name: [values[text.offsets[row] : text.offsets[row + 1]] for row in part] for name, values in stored.items()}
    joined = {name: join(parts) for name, parts in cut.items()}
    return codec.decode({name: torch.from_numpy(array) for name, array in to_flat(joined).items()})


def loss_against(logits_NV: Tensor, targets: SparseTargets, loss: str) -> Tensor:
    """The loss with this name."""
    if loss == "sampled":
        return formulas.kl_sampled(logits_NV, targets.ids_NK, targets.log_probs_NK)
    tail: formulas.Tail = "class" if loss == "class" else "renormalise"
    return formulas.kl_sparse(logits_NV, targets.ids_NK, targets.log_probs_NK, targets.tail_N, tail=tail)


def logits_of(student: Any, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """(a student's logits_NV at every position but the last of each row, the next tokens)."""
    ids_BL, mask_BL = padded(rows)
    hidden_BLD = student.model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
    has_next_BL = mask_BL.bool() & torch.nn.functional.pad(mask_BL, (0, 1))[:, 1:].bool()
    return student.lm_head(hidden_BLD[has_next_BL]), torch.cat([torch.tensor(row[1:]) for row in rows])


@torch.inference_mode()
def score(student: Any, text: Text, head_VD: Tensor) -> tuple[float, float]:
    """(KL(teacher || student), cross-entropy with the text), in nats per token, over whole distributions."""
    divergence = nats = 0.0
    for start in range(0, len(text.rows), ROWS):
        stop = min(start + ROWS, len(text.rows))
        logits_NV, labels_N = logits_of(student.eval(), text.rows[start:stop])
        teacher_NV = text.hidden_ND[text.offsets[start] : text.offsets[stop]].float() @ head_VD.T
        divergence += float(formulas.kl_dense(logits_NV, teacher_NV)) * len(labels_N)
        nats += float(formulas.cross_entropy(logits_NV, labels_N)) * len(labels_N)
    return divergence / text.positions, nats / text.positions


def report(runs: list[dict[str, Any]], teacher_nats: float) -> None:
    """Print the tables, and write the figures."""
    figures = []
    print(f"\nteacher: {teacher_nats:.3f} nats a token on the held-out text")
    for regime in PASSES:
        mine = [run for run in runs if run["regime"] == regime]
        keys = list(dict.fromkeys((run["budget"], run["method"]) for run in mine))
        cell = {key: [run for run in mine if (run["budget"], run["method"]) == key] for key in keys}
        full = statistics.mean(run["kl"] for run in cell[0, "full"])
        print(f"\n{regime}, {TOKENS:,} tokens, seeds {SEEDS}: held-out KL to the teacher (mean and spread), and loss")
        print(f"{'targets':<26}{'rule':<40}{'bytes':>7}{'ids':>6}{'KL':>9}{'±':>8}{'gap':>9}{'loss':>9}")
        for key in sorted(keys, key=lambda key: (key[0], statistics.mean(run["kl"] for run in cell[key]))):
            found = cell[key]
            values = [run["kl"] for run in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            mean, nats = statistics.mean(values), statistics.mean(run["loss"] for run in found)
            print(
                f"{key[1]:<26}{found[0]['rule'].split(', the rest')[0]:<40}{found[0]['bytes']:>7.1f}"
                f"{found[0]['ids']:>6.1f}{mean:>9.4f}{spread:>8.4f}{mean - full:>+9.4f}{nats:>9.4f}"
            )
        gaps = {key: statistics.mean(run["kl"] for run in cell[key]) - full for key in keys}
        best_top_k = min(
            gap for (budget, name), gap in gaps.items() if budget == BYTES[-1] and name.startswith("top-k")
        )
        name = f"{regime}: gap to full targets, sampled at {BYTES[0]} B, top-k at {BYTES[-1]} B"
        figures.append(Figure(name, gaps[BYTES[0], SAMPLED], best_top_k, 1.0, False, "nats", len(SEEDS)))
    write_figures("selection", figures)


if __name__ == "__main__":
    main()
