"""A made-up row that every model reads."""

from shared.models.probe import PROBE_TOKENS, probe_inputs
from tests.shared.models.architectures import make


def test_a_made_up_row_has_ids_that_the_vocabulary_has() -> None:
    model = make("bert", vocab_size=5)
    inputs = probe_inputs(model)
    assert inputs["input_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert inputs["attention_mask"].tolist() == [[1] * PROBE_TOKENS]
    assert model(**inputs).logits.shape == (1, PROBE_TOKENS, 5)
    assert probe_inputs(model, 2)["input_ids"].tolist() == [[0, 1]]
