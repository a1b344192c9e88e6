"""Makes golden dumps of today's format: `python tests/golden/make.py NAME` writes NAME-threshold, NAME-top-k, ...;
`python tests/golden/make.py NAME chats` that one alone.

A golden dump is kept for good, so that every later version is tested to read it. Beside each lies expected.json: what
`Dump` saw in it on the day it was made. Never make one again under its old name.
"""

import json
import shutil
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from shared import Dump
from teacher_dump.annotate import annotate, prepare
from teacher_dump.request import Request

GOLDEN = Path(__file__).parent
# An empty text and one of a single token have no position; nine rows make three shards.
TEXTS = (
    "the quick brown fox",
    "",
    "a lazy dog",
    "x",
    "seven wizards box some jugs of liquor",
    "naïve café",
    "jumps over a lazy dog while the quick brown fox",
    "liquor",
    "some wizards",
)
# Of the dumps of chats: two turns, an answer that is cut at 64 tokens, none, one.
CHATS = (
    (("user", "a fox?"), ("assistant", "the quick brown fox"), ("user", "a dog?"), ("assistant", "a lazy dog")),
    (("system", "be kind"), ("user", "wizards?"), ("assistant", "seven wizards box some jugs of liquor " * 3)),
    (("user", "liquor"),),
    (("user", "naïve?"), ("assistant", "café")),
)
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
KINDS: dict[str, dict[str, Any]] = {
    "threshold": {"threshold": 0.05, "temperatures": "2", "hidden": "last", "hidden_codec": "int8"},
    "mass": {"threshold": 0.02, "tail": "mass", "levels": 16_000, "hidden": "0,1", "hidden_codec": "int4"},
    "top-k": {"top_k": 6, "temperatures": "0.5,2", "hidden": "last", "hidden_codec": "int8", "hidden_rank": 8},
    "top-p": {"top_p": 0.5, "top_k": 12},
    "draws": {"draws": 10},
    "exact": {"exact": True},
    "chats": {
        "messages_column": "messages",
        "positions": "completion",
        "top_k": 6,
        "entropy": True,
        "relations": "last",
        "hidden_codec": "int8",
    },
    "embeddings": {"top_k": 4, "embeddings": True},
    "attention-inputs": {"top_k": 4, "attention_inputs": "2"},
    "weights": {"top_k": 4, "teacher_weights": "2", "teacher_weights_dtype": "bf16", "importance": 8},
    "questions": {"task": "question-answering", "max_length": 14, "stride": 4},
    "mixtures": {"task": "sequence-classification", "mixup": 2, "mixup_alpha": 0.5},
}
# The models of the kinds that are not of language models.
MODELS = {"questions": AutoModelForQuestionAnswering, "mixtures": AutoModelForSequenceClassification}
# Of the dump of questions: a context of several windows, one without an answer, one whose answers nobody knows.
QUESTIONS = (
    {
        "question": "Who box?",
        "context": "the quick brown fox jumps over a lazy dog while seven wizards box some jugs of liquor",
        "answer_texts": ["seven wizards"],
        "answer_starts": [48],
    },
    {"question": "Where?", "context": "some wizards box jugs", "answer_texts": [], "answer_starts": []},
    {"question": "naïve?", "context": "a naïve café"},
)
# Vectors take much room as text: rows 0 and 1 stand for all.
VECTOR_ROWS = 2


def make(folder: Path, kind: str) -> None:
    """A dump of a tiny teacher with random weights, and what `Dump` sees in it."""
    is_bert = kind in MODELS
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        GOLDEN / ("first-masked" if is_bert else "first-top-k") / "tokenizer"
    )
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert" if is_bert else "llama",
        vocab_size=len(tokenizer) if is_bert else 320,
        max_position_embeddings=64,
        initializer_range=0.25,
        bos_token_id=None,
        **sizes,
    )
    model = MODELS.get(kind, AutoModelForCausalLM).from_config(config)
    # The manifest names the teacher as the command does: by a path that is the same everywhere.
    with tempfile.TemporaryDirectory() as work, chdir(work):
        model.save_pretrained("tiny-teacher")
        rows: list[dict[str, Any]] = [{"text": text} for text in TEXTS]
        if kind == "chats":
            tokenizer.chat_template = TEMPLATE
            rows = [{"messages": [{"role": role, "content": content} for role, content in chat]} for chat in CHATS]
        if kind == "questions":
            rows = list(QUESTIONS)
        if kind == "mixtures":
            rows = [{"text": text, "label": f"LABEL_{len(text) % 2}"} for text in TEXTS if text]
        tokenizer.save_pretrained("tiny-teacher")
        Path("corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        options: dict[str, Any] = {"task": "causal-lm", "max_length": 64, "shard_rows": 4}
        options |= {"device": "cpu", "dtype": "fp32", **KINDS[kind]}
        request = Request(teacher="tiny-teacher", data=("corpus.jsonl",), out=Path("dump"), **options)
        annotate(prepare(request))
        shutil.copytree("dump", folder)
    (folder / "expected.json").write_text(json.dumps(contents(Dump(folder))) + "\n", encoding="utf-8")


def contents(dump: Dump) -> dict[str, Any]:
    """What `Dump` sees, as JSON: positions, rows of ids, and the first rows' vectors of each signal."""
    return {
        "positions": dump.positions().sort("row", "position", maintain_order=True).collect().to_dicts(),
        "rows": [list(row) for row in dump.scan().sort("row").select("row", "input_ids").collect().rows()],
        "vectors": {
            name: [
                list(row) for row in dump.vectors(name).collect().sort("row", "position").rows() if row[0] < VECTOR_ROWS
            ]
            for name in dump.manifest.vectors
        },
        "mixtures": dump.mixtures().sort("row", "draw").collect().to_dicts() if dump.manifest.mixtures else [],
        **{name: _shown(dump, name) for name in dump.manifest.tensor_files},
    }


def _shown(dump: Dump, name: str) -> Any:
    """The beginnings of the tensors of a file; of word embeddings, the rows alone."""
    shown = {key: tensor[:VECTOR_ROWS].tolist() for key, tensor in sorted(dump.tensors(name).items())}
    return shown[name] if shown.keys() == {name} else shown


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: python tests/golden/make.py NAME [{' | '.join(KINDS)} ...]")
    for kind in sys.argv[2:] or KINDS:
        make(GOLDEN / f"{sys.argv[1]}-{kind}", kind)
