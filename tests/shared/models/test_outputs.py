"""Logits of whatever head a model has, and a made-up row that every model reads."""

import pytest
import torch
from torch import Tensor

from shared.models.outputs import logits_of
from shared.models.probe import PROBE_TOKENS, probe_inputs
from tests.shared.models.architectures import VOCABULARY, make

IDS = torch.tensor([[5, 6, 7]])


@pytest.mark.parametrize(
    ("task", "shape"),
    [("SequenceClassification", (1, 2)), ("TokenClassification", (1, 3, 2)), ("MaskedLM", (1, 3, VOCABULARY))],
)
def test_logits_are_those_of_the_output(task: str, shape: tuple[int, ...]) -> None:
    output = make("bert", task)(input_ids=IDS)
    found = logits_of(output)
    assert found is output.logits
    assert found.shape == shape


def test_logits_of_answers_are_where_they_start_and_where_they_end() -> None:
    output = make("bert", "QuestionAnswering")(input_ids=IDS)
    found = logits_of(output)
    assert isinstance(found, Tensor)
    assert torch.equal(found[..., 0], output.start_logits)
    assert torch.equal(found[..., 1], output.end_logits)


def test_a_model_without_a_head_has_no_logits() -> None:
    assert logits_of(make("bert").base_model(input_ids=IDS)) is None


def test_a_made_up_row_has_ids_that_the_vocabulary_has() -> None:
    model = make("bert", vocab_size=5)
    inputs = probe_inputs(model)
    assert inputs["input_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert inputs["attention_mask"].tolist() == [[1] * PROBE_TOKENS]
    assert model(**inputs).logits.shape == (1, PROBE_TOKENS, 5)
    assert probe_inputs(model, 2)["input_ids"].tolist() == [[0, 1]]
