"""What all tests share: toy text, tiny tokenizers, tiny teachers with random weights, corpora and finished dumps.

Everything is made on the spot from fixed seeds, and nothing is ever looked up at a hub. The factories are
session-scoped, so that fixtures of any scope may call them; each call makes a fresh folder of its own.
"""

import copy
import csv
import gc
import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of the processes that a test starts

import hypothesis
import polars as pl
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast

from shared.storage import Folder
from shared.text.tasks import task_named
from teacher_dump.annotate import annotate, prepare
from teacher_dump.request import Request

torch.set_num_threads(1)
# A machine at work on something else is slow, and nothing is wrong with an example that takes its time there.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

LABELS = ("negative", "neutral", "positive")
TAGS = ("O", "B-X", "I-X")
MAX_LENGTH = 64
PATIENCE_SECONDS = 180
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PANGRAM = "the quick brown fox jumps over a lazy dog while seven wizards box some jugs of liquor naïve café"

# The kind of model for each task where a test does not say.
DEFAULT_MODEL_TYPES = {
    "causal-lm": "llama",
    "masked-lm": "bert",
    "sequence-classification": "bert",
    "token-classification": "bert",
    "question-answering": "bert",
    "encoder": "bert",
}
# Kinds that name their sizes in a way that AutoConfig.for_model does not translate.
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": MAX_LENGTH},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": MAX_LENGTH},
}
DEFAULT_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": MAX_LENGTH,
}

PLACES = ("path", "file", "memory")

MakeTeacher = Callable[..., Path]
WriteCorpus = Callable[[Path, Sequence[Any]], Path]
MakeDump = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """A flush takes milliseconds, and nobody pulls the plug to see what it is for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """300 toy sentences of 1 to 30 words, always the same."""
    choose, words = random.Random(0), PANGRAM.split()
    return [" ".join(choose.choices(words, k=choose.randint(1, 30))) for _ in range(300)]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """Where a dump may be kept, empty: a path, a file:// URL, and the memory of this process, one after the other."""
    yield from somewhere(request.param, tmp_path)


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Folder]:
    """A place that is not on this machine's disk."""
    yield from somewhere("memory", tmp_path)


def somewhere(kind: str, folder: Path) -> Iterator[Folder]:
    if kind == "memory":
        place = Folder.of(f"memory://{folder.name}/place")
        yield place
        place.remove_tree()
    else:
        yield Folder.of(f"file://{folder}/place" if kind == "file" else folder / "place")


@pytest.fixture
def no_hang() -> Iterator[None]:
    """The test fails where it would hang the suite."""

    def fail(*arguments: Any) -> None:
        pytest.fail(f"still at it after {PATIENCE_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, fail)
    # And again every second: what is being left may hang too.
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS, 1.0)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def tiny_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer as BERT's: [CLS] A [SEP], or [CLS] A [SEP] B [SEP] with token types; some 120 entries."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL_TOKENS))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", SPECIAL_TOKENS.index("[CLS]")), ("[SEP]", SPECIAL_TOKENS.index("[SEP]"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture(scope="session")
def tiny_causal_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as GPT-2's: nothing is added to a text (an empty one has no tokens), no pad token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


@pytest.fixture(scope="session")
def tiny_chat_tokenizer(tiny_causal_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer with ChatML's special tokens and its template, which has no generation marks."""
    tokenizer = copy.deepcopy(tiny_causal_tokenizer)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def toy_chats(texts: list[str]) -> list[dict[str, Any]]:
    """40 rows of 1 to 5 turns, user and assistant in turn: some have no answer, some are cut at 64 tokens."""
    choose, roles = random.Random(2), ("user", "assistant", "user", "assistant", "user")
    return [
        {"messages": [{"role": role, "content": choose.choice(texts)[:40]} for role in roles[: 1 + row % 5]]}
        for row in range(40)
    ]


@pytest.fixture(scope="session")
def make_teacher(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_causal_tokenizer: PreTrainedTokenizerFast,
) -> MakeTeacher:
    """make_teacher(task, model_type=None, tokenizer=None, seed=0, **config) -> the folder of a tiny teacher.

    2 layers, 32 wide, at most 64 tokens (so ask for max_length <= 64), random weights large enough for distributions
    that are far from uniform. Its vocabulary is the tokenizer's rounded up to a multiple of 64, as heads often are.
    `config` overrides any entry of the configuration. Labels are negative, neutral, positive; tags O, B-X, I-X.
    Generative kinds (llama, gpt2, ...) get the byte-level tokenizer, the others the WordPiece one.
    """

    def make(
        task: str,
        model_type: str | None = None,
        *,
        tokenizer: PreTrainedTokenizerFast | None = None,
        seed: int = 0,
        **config: Any,
    ) -> Path:
        kind = model_type or DEFAULT_MODEL_TYPES[task]
        auto_class = getattr(transformers, task_named(task).auto_class)
        if tokenizer is None:
            reads_both_ways = kind in ("bert", "distilbert", "roberta", "electra")
            tokenizer = tiny_tokenizer if reads_both_ways else tiny_causal_tokenizer
        entries: dict[str, Any] = {
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "initializer_range": 0.25,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": tokenizer.pad_token_id,
            **SIZES.get(kind, DEFAULT_SIZES),
        }
        if task_named(task).has_labels and task_named(task).label_names is None:
            names = TAGS if task == "token-classification" else LABELS
            entries["id2label"] = dict(enumerate(names))
            entries["label2id"] = {name: index for index, name in enumerate(names)}
        torch.manual_seed(seed)
        model = auto_class.from_config(AutoConfig.for_model(kind, **{**entries, **config}))
        folder = tmp_path_factory.mktemp("teacher")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def write_corpus() -> WriteCorpus:
    """write_corpus(path, rows) -> path: rows (dicts, or plain strings) as .txt, .jsonl, .csv, .tsv or .parquet."""

    def write(path: Path, rows: Sequence[Any]) -> Path:
        tables = [row if isinstance(row, dict) else {"text": row} for row in rows]
        names = list(dict.fromkeys(name for row in tables for name in row))
        if path.suffix == ".txt":
            path.write_text("".join(f"{row['text']}\n" for row in tables), encoding="utf-8")
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in tables), encoding="utf-8")
        elif path.suffix in (".csv", ".tsv"):
            with open(path, "w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, names, delimiter="\t" if path.suffix == ".tsv" else ",")
                writer.writeheader()
                writer.writerows(tables)
        else:
            pl.DataFrame({name: [row.get(name) for row in tables] for name in names}).write_parquet(path)
        return path

    return write


@pytest.fixture(scope="session")
def toy_rows(texts: list[str]) -> Callable[..., list[dict[str, Any]]]:
    """toy_rows(task, count=60) -> rows that suit the task, about one in four without its gold label."""

    def rows(task: str, count: int = 60) -> list[dict[str, Any]]:
        choose = random.Random(1)
        made: list[dict[str, Any]] = []
        for number, text in enumerate(texts[:count]):
            if task == "question-answering":
                made.append(toy_question(number, texts, choose))
            elif task == "token-classification":
                words = text.split()
                tags = [choose.choice(TAGS) for _ in words]
                made.append({"tokens": words, "tags": tags if choose.random() > 0.25 else None})
            elif task == "sequence-classification":
                made.append({"text": text, "label": choose.choice(LABELS) if choose.random() > 0.25 else None})
            else:
                made.append({"text": text})
        return made

    return rows


def toy_question(number: int, texts: list[str], choose: random.Random) -> dict[str, Any]:
    """A question about 1 to 5 sentences; every fifth has no answer, every seventh none that is known."""
    context = ". ".join(choose.choices(texts, k=choose.randint(1, 5)))
    words = context.split(" ")
    first = choose.randrange(len(words))
    start = len(" ".join([*words[:first], ""]))
    answer = " ".join(words[first : first + 3])
    row = {"question": " ".join(texts[number].split()[:6]), "context": context}
    if number % 7 == 6:
        return row
    has_answer = number % 5 != 4
    return {**row, "answer_texts": [answer] * has_answer, "answer_starts": [start] * has_answer}


@pytest.fixture(scope="session")
def make_dump(
    tmp_path_factory: pytest.TempPathFactory,
    make_teacher: MakeTeacher,
    write_corpus: WriteCorpus,
    toy_rows: Callable[..., list[dict[str, Any]]],
) -> MakeDump:
    """make_dump(task="sequence-classification", teacher=None, data=None, out=None, **request) -> the dump's folder.

    Runs `prepare` and `annotate` in this process. `teacher` is a model's folder (a new tiny one by default) or a
    `CallableTeacher`, `data` a file or a list of rows (60 toy rows by default), `request` any field of
    teacher_dump.request.Request. By default max_length is 64, shard_rows 16, the device the CPU, and an encoder's last
    hidden states are recorded.
    """

    def make(
        task: str = "sequence-classification",
        *,
        teacher: Any = None,
        data: Path | Sequence[Any] | None = None,
        out: Path | str | None = None,
        **request: Any,
    ) -> Path:
        folder = tmp_path_factory.mktemp("dump")
        if not isinstance(data, Path):
            data = write_corpus(folder / "corpus.jsonl", toy_rows(task) if data is None else data)
        out = out or folder / "dump"
        options = {"max_length": MAX_LENGTH, "shard_rows": 16, "device": "cpu"} | request
        if task == "encoder":
            options.setdefault("hidden", "last")
        teacher = teacher or make_teacher(task)
        if isinstance(teacher, Path):
            teacher = str(teacher)
        annotate(prepare(Request(teacher, task, (str(data),), out, **options)))
        return out

    return make


def pytest_collection_finish() -> None:
    set_aside()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is not None and nextitem.path != item.path:
        set_aside()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # what ends with the interpreter does so in its own order


def set_aside() -> None:
    """What was imported by now stays: garbage collections, one a training run, need not look at it.

    Otherwise most of a tiny run's time goes there, and a forked process copies all the memory that it looks at.
    """
    gc.collect()
    gc.freeze()
