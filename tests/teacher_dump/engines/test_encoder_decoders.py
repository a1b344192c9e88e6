"""Encoder-decoders as teachers: their distributions are recorded, and what they do not give is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

from shared import Dump
from shared.errors import TeacherError
from teacher_dump.annotate import annotate, prepare
from teacher_dump.request import Request

SIDES = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
BART = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, **SIDES}
BART |= {"decoder_start_token_id": 2, "eos_token_id": 3}
T5 = {"d_model": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 32}
T5 |= {"decoder_start_token_id": 0, "eos_token_id": 3}
SHAPES = {"bart": BART, "mbart": BART, "t5": T5}
TASKS = {
    "sequence-classification": ("bart", "mbart", "t5"),
    "question-answering": ("bart", "t5"),
    "encoder": ("bart", "t5"),
    "masked-lm": ("bart",),
}


@pytest.fixture
def dumped(
    make_teacher: Any, write_corpus: Any, toy_rows: Any, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Callable[..., tuple[Path, Path]]:
    """dumped(task, model_type, **options) -> (the teacher's folder, the dump's)."""

    def make(task: str, kind: str, **options: Any) -> tuple[Path, Path]:
        teacher = make_teacher(task, kind, tokenizer=tiny_tokenizer, **SHAPES[kind])
        data = write_corpus(tmp_path / "rows.jsonl", toy_rows(task, 12))
        words = {"teacher": str(teacher), "task": task, "data": (str(data),), "out": tmp_path / "dump"}
        annotate(prepare(Request(**words, max_length=48, device="cpu", **options)))
        return teacher, tmp_path / "dump"

    return make


@pytest.mark.parametrize(("task", "kind"), [(task, kind) for task, kinds in TASKS.items() for kind in kinds])
@pytest.mark.parametrize("options", [{"hidden": "all"}, {"hidden": "1"}, {"relations": "last"}])
def test_their_two_stacks_of_layers_are_refused(
    task: str, kind: str, options: dict[str, str], dumped: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(TeacherError, match=r"does not give (its|the) (hidden states|queries)") as raised:
        dumped(task, kind, **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "dump").exists()


def test_the_hidden_states_of_t5_with_only_its_encoder_are_those_of_transformers(dumped: Callable[..., Any]) -> None:
    teacher, out = dumped("token-classification", "t5", hidden="all")
    dump = Dump(out)
    model = AutoModelForTokenClassification.from_pretrained(teacher).eval()
    rows = dump.scan().select("row", "input_ids").sort("row").collect()
    for layer in (0, 1, 2):
        vectors = dump.vectors(f"hidden.{layer}").sort("row", "position").collect()
        for row, ids in rows.iter_rows():
            with torch.no_grad():
                states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
            mine = torch.tensor(vectors.filter(vectors["row"] == row)["vector"].to_list())
            torch.testing.assert_close(mine, states, atol=2e-3, rtol=2e-3)
