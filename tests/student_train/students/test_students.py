"""Students: what each kind computes, what comes back from its folder, and what is refused before training."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
)

from shared.errors import RecipeError
from shared.models.layers import layers_of
from student_train.students import (
    BiLSTMConfig,
    BiLSTMForSequenceClassification,
    BiLSTMForTokenClassification,
    BiLSTMModel,
    BiLSTMStudent,
    Needs,
    PretrainedStudent,
    StudentSpec,
    TransformerStudent,
    build_student,
)
from student_train.students.bilstm import _alike
from student_train.students.build import reach_of

VOCAB_SIZE = 50
LABELS = ("World", "Sports", "Business")

BILSTM = BiLSTMStudent(embedding_size=6, hidden_size=8, layers=2)
TRANSFORMER = TransformerStudent(layers=2, hidden_size=16, heads=4)

INPUT_IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]])
ATTENTION_MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(spec: Any, auto_class: str = "AutoModelForSequenceClassification", **changes: Any) -> PreTrainedModel:
    has_labels = auto_class.endswith("Classification")
    arguments: dict[str, Any] = {
        "auto_class": auto_class,
        "vocab_size": VOCAB_SIZE,
        "tokenizer_size": VOCAB_SIZE,
        "label_names": LABELS if has_labels else None,
        "pad_token_id": 0,
        "max_length": 12,
    }
    return build_student(spec, Needs(**arguments | changes)).eval()


@torch.no_grad()
def run(model: PreTrainedModel, input_ids: torch.Tensor = INPUT_IDS, mask: torch.Tensor = ATTENTION_MASK) -> Any:
    return model(input_ids=input_ids, attention_mask=mask, output_hidden_states=True)


def first_output(model: PreTrainedModel) -> torch.Tensor:
    return run(model)[0]


# --- the BiLSTM ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto_class", ["AutoModel", "AutoModelForSequenceClassification"])
def test_padding_and_what_is_written_there_change_no_output_of_a_bilstm(auto_class: str) -> None:
    model = build(BILSTM, auto_class)
    together = first_output(model)
    alone = run(model, INPUT_IDS[1:, :3], ATTENTION_MASK[1:, :3])[0]
    torch.testing.assert_close(together[1:, :3], alone)
    scribbled = INPUT_IDS.masked_fill(ATTENTION_MASK == 0, 33)
    torch.testing.assert_close(run(model, scribbled)[0], together)


def test_a_bilstm_reads_rows_in_any_order_of_lengths() -> None:
    model = build(BILSTM)
    torch.testing.assert_close(run(model, INPUT_IDS.flip(0), ATTENTION_MASK.flip(0)).logits, run(model).logits.flip(0))


def test_a_bilstm_answers_at_every_position_that_it_is_given() -> None:
    model = build(BILSTM, "AutoModelForTokenClassification")
    logits = run(model).logits
    assert logits.shape == (2, 5, 3)
    padded = torch.nn.functional.pad(INPUT_IDS, (0, 3)), torch.nn.functional.pad(ATTENTION_MASK, (0, 3))
    assert run(model, *padded).logits.shape == (2, 8, 3)
    torch.testing.assert_close(run(model, *padded).logits[:, :5], logits)


def test_a_bilstm_pools_by_the_maximum_over_the_real_tokens() -> None:
    model = build(BILSTM)
    hidden_BLD = run(model).hidden_states[-1]
    pooled_BD = torch.stack([hidden_BLD[0].amax(0), hidden_BLD[1, :3].amax(0)])
    assert (pooled_BD < 0).any(), "a maximum below the zeros of the padding makes the test worth its name"
    torch.testing.assert_close(run(model).logits, model.classifier(pooled_BD))


def test_a_layer_of_a_bilstm_reads_in_both_directions() -> None:
    model = build(BILSTM, "AutoModel")
    changed = INPUT_IDS.clone()
    changed[0, 2] = 40
    difference_LD = (run(model, changed)[0] - run(model)[0])[0].abs() > 1e-7
    assert difference_LD[0].any()
    assert difference_LD[4].any()


@pytest.mark.parametrize("frozen", [(), ("embeddings",), ("layers",)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lengths", [(5, 1, 3, 7), (2, 8, 7, 1, 8, 3, 1, 3, 1, 3, 7, 1)])  # the latter: three groups
def test_a_layer_of_a_bilstm_is_torchs_lstm_on_each_row_alone(
    lengths: tuple[int, ...], dtype: torch.dtype, frozen: tuple[str, ...]
) -> None:
    """Values and gradients, whatever is trainable, against float64 without padding."""
    model = build(BILSTM, "AutoModel").to(dtype).train()
    model.dropout.p = 0.0
    for name in frozen:
        getattr(model, name).requires_grad_(False)
    plain = copy.deepcopy(model).double()
    ids, mask = torch.randint(4, VOCAB_SIZE, (len(lengths), 9)), torch.arange(9) < torch.tensor(lengths)[:, None]
    expected = torch.zeros(len(lengths), 9, 8, dtype=torch.float64)
    for row, length in enumerate(lengths):
        states = plain.embeddings(ids[row : row + 1, :length])
        for layer in plain.layers:
            states = layer(states)[0]
        expected[row, :length] = states[0]
    found = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
    for output in (found, expected):
        output.sin().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-5, rtol=1e-4)


def test_a_bilstm_reads_rows_of_similar_length_together() -> None:
    lengths = torch.tensor((2, 8, 7, 1, 8, 3, 1, 3, 1, 3, 7, 1))
    assert [sorted(lengths[rows].tolist()) for rows in _alike(lengths)] == [[7, 7, 8, 8], [2, 3, 3, 3], [1, 1, 1, 1]]
    few = torch.tensor((9, 1, 1, 1))
    assert [rows.tolist() for rows in _alike(few)] == [few.argsort(descending=True).tolist()]


def test_hidden_states_of_a_bilstm_are_the_embeddings_and_each_layers_output() -> None:
    output = run(build(BILSTM, "AutoModel"))
    assert [tuple(hidden.shape) for hidden in output.hidden_states] == [(2, 5, 6), (2, 5, 8), (2, 5, 8)]
    torch.testing.assert_close(output.hidden_states[-1], output.last_hidden_state)
    assert build(BILSTM, "AutoModel")(INPUT_IDS).hidden_states is None


def test_a_bilstm_without_a_mask_reads_every_position() -> None:
    model = build(BILSTM)
    with torch.no_grad():
        torch.testing.assert_close(model(INPUT_IDS).logits, run(model, mask=torch.ones_like(INPUT_IDS)).logits)


def test_a_bilstm_takes_embeddings_in_place_of_ids_and_answers_in_tuples_if_asked() -> None:
    model = build(BILSTM, "AutoModelForTokenClassification")
    embeddings = model.get_input_embeddings()(INPUT_IDS)
    with torch.no_grad():
        (logits,) = model(inputs_embeds=embeddings, attention_mask=ATTENTION_MASK, return_dict=False)
    torch.testing.assert_close(logits, run(model).logits)
    with pytest.raises(ValueError, match="both or neither"):
        model(INPUT_IDS, inputs_embeds=embeddings)


def test_token_types_are_ignored_by_a_bilstm() -> None:
    model = build(BILSTM)
    with torch.no_grad():
        typed = model(INPUT_IDS, ATTENTION_MASK, token_type_ids=torch.ones_like(INPUT_IDS)).logits
    torch.testing.assert_close(typed, run(model).logits)


@pytest.mark.parametrize("mask_row", [[0, 0, 1, 1, 1], [1, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
def test_a_bilstm_refuses_a_mask_that_is_not_padded_on_the_right(mask_row: list[int]) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], mask_row])
    with pytest.raises(ValueError, match=r"padded on the right.*rows \[1\]"):
        run(build(BILSTM), mask=mask)


def test_labels_give_a_bilstm_the_cross_entropy_of_its_logits() -> None:
    sequence = build(BILSTM)(INPUT_IDS, ATTENTION_MASK, labels=torch.tensor([2, 0]))
    expected = -sequence.logits.log_softmax(-1)[[0, 1], [2, 0]].mean()
    torch.testing.assert_close(sequence.loss, expected)

    labels = torch.full((2, 5), -100)
    labels[0, 1], labels[1, 2] = 1, 2
    tokens = build(BILSTM, "AutoModelForTokenClassification")(INPUT_IDS, ATTENTION_MASK, labels=labels)
    expected = -tokens.logits.log_softmax(-1)[[0, 1], [1, 2], [1, 2]].mean()
    torch.testing.assert_close(tokens.loss, expected)


def test_every_parameter_of_a_bilstm_learns() -> None:
    model = build(BILSTM)
    model(INPUT_IDS, ATTENTION_MASK, labels=torch.tensor([2, 0])).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_dropout_of_a_bilstm_works_in_training_alone() -> None:
    model = build(BILSTM.model_copy(update={"dropout": 0.5}))
    torch.testing.assert_close(run(model).logits, run(model).logits)
    model.train()
    assert not torch.equal(run(model.bilstm)[0], run(model.bilstm)[0])
    model.bilstm.eval()
    assert not torch.equal(run(model).logits, run(model).logits)


def test_the_embeddings_of_a_bilstm_can_be_replaced() -> None:
    model = build(BILSTM)
    model.resize_token_embeddings(VOCAB_SIZE + 7)
    assert model.bilstm.embeddings.weight.shape == (VOCAB_SIZE + 7, 6)
    assert run(model, INPUT_IDS + 44).logits.isfinite().all()
    table = torch.nn.Embedding(9, 6)
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is table


def test_an_odd_width_of_a_bilstm_is_refused() -> None:
    with pytest.raises(ValueError, match="is 9"):
        BiLSTMConfig(hidden_size=9)
    with pytest.raises(ValidationError, match="hidden_size = 9"):
        BiLSTMStudent(embedding_size=4, hidden_size=9)


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "auto"),
    [
        (BILSTM, AutoModel),
        (BILSTM, AutoModelForSequenceClassification),
        (BILSTM, AutoModelForTokenClassification),
        (TRANSFORMER, AutoModel),
        (TRANSFORMER, AutoModelForCausalLM),
        (TRANSFORMER, AutoModelForMaskedLM),
        (TRANSFORMER, AutoModelForSequenceClassification),
        (TRANSFORMER, AutoModelForTokenClassification),
        (TRANSFORMER.model_copy(update={"model_type": "roberta"}), AutoModelForSequenceClassification),
        (TRANSFORMER.model_copy(update={"model_type": "distilbert"}), AutoModelForTokenClassification),
        (TRANSFORMER.model_copy(update={"model_type": "gpt2"}), AutoModelForCausalLM),
    ],
)
def test_a_student_comes_back_from_its_folder_as_it_was(
    spec: Any, auto: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("loading a student must ask nobody"))
    model = build(spec, auto.__name__)
    model.save_pretrained(tmp_path / "first")
    reloaded = auto.from_pretrained(tmp_path / "first").eval()
    assert type(reloaded) is type(model)
    torch.testing.assert_close(first_output(reloaded), first_output(model), rtol=0, atol=0)

    student = build(PretrainedStudent(path=str(tmp_path / "first")), auto.__name__)
    torch.testing.assert_close(first_output(student), first_output(model), rtol=0, atol=0)
    assert student.config.id2label == model.config.id2label


@pytest.mark.parametrize(
    ("auto_class", "head"),
    [
        ("AutoModelForSequenceClassification", "classifier"),
        ("AutoModelForTokenClassification", "classifier"),
        ("AutoModelForQuestionAnswering", "qa_outputs"),
    ],
)
def test_the_weights_of_a_bilstm_keep_the_names_that_saved_folders_have(auto_class: str, head: str) -> None:
    model = build(BILSTM.model_copy(update={"layers": 1}), auto_class)
    lstm = [f"{kind}_{at}_l0{way}" for way in ("", "_reverse") for kind in ("weight", "bias") for at in ("ih", "hh")]
    assert list(model.state_dict()) == [
        "bilstm.embeddings.weight",
        *(f"bilstm.layers.0.{name}" for name in lstm),
        f"{head}.weight",
        f"{head}.bias",
    ]


def test_a_bilstm_folder_loads_without_lectern_if_its_code_is_trusted(tmp_path: Path) -> None:
    model = build(BILSTM)
    model.save_pretrained(tmp_path / "student")
    script = (
        "import sys, torch\n"
        "from transformers import AutoModelForSequenceClassification as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert not any(name.startswith('student_train') for name in sys.modules)\n"
        f"ids, mask = torch.tensor({INPUT_IDS.tolist()}), torch.tensor({ATTENTION_MASK.tolist()})\n"
        "print(model.eval()(ids, mask).logits.tolist(), model.config.id2label)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "student")],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert model.config.auto_map == {
        "AutoConfig": "bilstm.BiLSTMConfig",
        "AutoModelForSequenceClassification": "bilstm.BiLSTMForSequenceClassification",
    }
    assert result.stdout.strip() == f"{first_output(model).tolist()} {dict(enumerate(LABELS))}"


# --- what is built ---------------------------------------------------------------------------------------------------


def test_the_kind_chooses_the_student() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(StudentSpec)
    assert adapter.validate_python({"kind": "pretrained", "path": "x"}) == PretrainedStudent(path="x")
    assert adapter.validate_python({"kind": "transformer", "layers": 2, "hidden_size": 16, "heads": 4}) == TRANSFORMER
    assert adapter.validate_python({"kind": "bilstm", "embedding_size": 6, "hidden_size": 8, "layers": 2}) == BILSTM
    with pytest.raises(ValidationError, match="rnn"):
        adapter.validate_python({"kind": "rnn"})
    with pytest.raises(ValidationError, match="depth"):
        adapter.validate_python({"kind": "transformer", "layers": 2, "hidden_size": 16, "heads": 4, "depth": 3})


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("xtremedistil-l6-h256", 12.75), ("xtremedistil-l6-h384", 22.7), ("xtremedistil-l12-h384", 33.4)],
)
def test_presets_have_the_published_sizes(preset: str, millions: float) -> None:
    spec = TransformerStudent.model_validate({"preset": preset})
    layers, width = (int(part[1:]) for part in preset.split("-")[1:])
    assert (spec.layers, spec.hidden_size, spec.hidden_size // spec.heads) == (layers, width, 32)
    model = build(spec, "AutoModel", vocab_size=30522, tokenizer_size=30522, max_length=512)
    assert model.config.intermediate_size == 4 * width
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_key_beside_a_preset_overrides_it_and_another_preset_is_refused() -> None:
    spec = TransformerStudent.model_validate({"preset": "xtremedistil-l6-h384", "layers": 3})
    assert (spec.layers, spec.hidden_size, spec.heads) == (3, 384, 12)
    assert TransformerStudent.model_validate(spec.model_dump()) == spec
    for unknown in ("xtremedistil", 6, ["xtremedistil-l6-h384"]):
        with pytest.raises(ValidationError, match="is unknown; the valid ones are xtremedistil-l6-h256, "):
            TransformerStudent.model_validate({"preset": unknown})


@pytest.mark.parametrize(
    ("auto_class", "kind"),
    [
        ("AutoModel", BiLSTMModel),
        ("AutoModelForSequenceClassification", BiLSTMForSequenceClassification),
        ("AutoModelForTokenClassification", BiLSTMForTokenClassification),
    ],
)
def test_a_bilstm_has_the_shape_it_was_given(auto_class: str, kind: type[PreTrainedModel]) -> None:
    model = build(BILSTM, auto_class)
    assert type(model) is kind
    config = model.config
    assert (config.vocab_size, config.embedding_size, config.hidden_size, config.num_hidden_layers) == (50, 6, 8, 2)
    assert (config.dropout, config.pad_token_id) == (0.1, 0)
    assert BiLSTMConfig(pad_token_id=3).pad_token_id == 3


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "electra", "modernbert", "gpt2", "qwen3"])
def test_a_transformer_has_the_shape_it_was_given_under_any_name(model_type: str) -> None:
    spec = TransformerStudent(layers=3, hidden_size=16, heads=2, model_type=model_type, dropout=0.25)
    model = build(spec)
    config = model.config
    assert config.model_type == model_type
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (3, 16, 2)
    assert model.get_input_embeddings().num_embeddings == VOCAB_SIZE
    assert any(max(weight.shape, default=0) in (64, 128) for weight in model.parameters()), "4 * hidden_size inside"
    rates = {value for name, value in config.to_dict().items() if "dropout" in name or name.endswith("_pdrop")}
    assert rates == {0.25}
    assert config.id2label == dict(enumerate(LABELS))
    assert config.label2id["Business"] == 2
    full_length = torch.arange(24).reshape(2, 12) + 1
    assert run(model, full_length, torch.ones_like(full_length)).logits.shape == (2, 3)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_a_transformer_may_have_more_positions_than_the_source_needs(model_type: str) -> None:
    spec = TransformerStudent(layers=1, hidden_size=16, heads=2, model_type=model_type, max_positions=20)
    ids = torch.arange(20)[None] + 1
    assert run(build(spec), ids, torch.ones_like(ids)).logits.shape == (1, 3)
    assert reach_of(build(spec)) == 20
    with pytest.raises(RecipeError, match="reads at most 8 tokens, but the dump's rows have up to 12"):
        build(spec.model_copy(update={"max_positions": 8}))


def test_the_model_type_follows_the_task_unless_given() -> None:
    assert build(TRANSFORMER, "AutoModelForMaskedLM").config.model_type == "bert"
    assert build(TRANSFORMER, "AutoModelForCausalLM").config.model_type == "llama"


def test_every_head_of_a_decoder_has_its_own_keys() -> None:
    config = build(TransformerStudent(layers=1, hidden_size=32, heads=4, model_type="qwen3")).config
    assert (config.num_key_value_heads, config.head_dim) == (4, 8)


@pytest.mark.parametrize("tie", [True, False])
def test_embeddings_are_tied_as_asked(tie: bool) -> None:
    model = build(TRANSFORMER.model_copy(update={"tie_embeddings": tie}), "AutoModelForCausalLM")
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tie


@pytest.mark.parametrize("from_checkpoint", [False, True])
def test_a_causal_student_never_sees_the_answer_even_when_it_is_a_bert(from_checkpoint: bool, tmp_path: Path) -> None:
    spec: Any = TRANSFORMER.model_copy(update={"model_type": "bert"})
    if from_checkpoint:
        build(spec, "AutoModelForMaskedLM").save_pretrained(tmp_path)
        spec = PretrainedStudent(path=str(tmp_path))
    model = build(spec, "AutoModelForCausalLM")
    changed = INPUT_IDS.clone()
    changed[0, 3] = 40
    torch.testing.assert_close(run(model, changed).logits[0, :3], run(model).logits[0, :3])


def test_special_ids_of_another_vocabulary_are_not_kept() -> None:
    config = build(TRANSFORMER, "AutoModelForCausalLM", pad_token_id=3).config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (3, None, None)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def save_bert(folder: Path, labels: tuple[str, ...] | None, dtype: torch.dtype = torch.float32) -> str:
    names = {} if labels is None else {"id2label": dict(enumerate(labels))}
    config = BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        **names,
    )
    BertForSequenceClassification(config).to(dtype).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("labels", [("Sports", "World", "Business"), ("World", "Sports"), ("a", "b", "c")])
def test_a_trained_head_with_other_labels_is_refused(labels: tuple[str, ...], tmp_path: Path) -> None:
    path = save_bert(tmp_path, labels)
    with pytest.raises(RecipeError, match=f"{', '.join(labels)}.*World, Sports, Business"):
        build(PretrainedStudent(path=path))


def test_a_trained_head_with_the_same_labels_is_kept(tmp_path: Path) -> None:
    path = save_bert(tmp_path, LABELS)
    kept = BertForSequenceClassification.from_pretrained(path)
    torch.testing.assert_close(build(PretrainedStudent(path=path)).classifier.weight, kept.classifier.weight)


def test_unnamed_labels_get_names_and_a_head_of_their_number(tmp_path: Path) -> None:
    student = build(PretrainedStudent(path=save_bert(tmp_path, None)))
    assert student.config.id2label == dict(enumerate(LABELS))
    assert student.classifier.weight.shape == (3, 16)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "electra", "gpt2", "qwen3"])
def test_a_student_begins_with_some_of_a_checkpoints_layers(model_type: str, tmp_path: Path) -> None:
    """What it computes: with the lower layers what the checkpoint computes up to there, and with others what their
    weights say; its folder comes back the same."""
    auto_class = "AutoModelForCausalLM" if model_type in ("gpt2", "qwen3") else "AutoModelForSequenceClassification"
    whole = build(TransformerStudent(layers=4, hidden_size=16, heads=2, model_type=model_type), auto_class)
    whole.save_pretrained(tmp_path / "whole")
    lower = build(PretrainedStudent(path=str(tmp_path / "whole"), keep_layers=(1, 2)), auto_class)
    apart = build(PretrainedStudent(path=str(tmp_path / "whole"), keep_layers=(2, 4)), auto_class)
    assert lower.config.num_hidden_layers == apart.config.num_hidden_layers == 2
    states = [run(model).hidden_states for model in (whole, lower)]
    # The last of the states comes after a final norm, where there is one.
    torch.testing.assert_close(states[1][1], states[0][1])
    left = [dict(layer.named_parameters()) for layer in layers_of(apart)]
    right = [dict(layers_of(whole)[number].named_parameters()) for number in (1, 3)]
    assert all(torch.equal(one[name], other[name]) for one, other in zip(left, right, strict=True) for name in one)
    for number, model in enumerate((lower, apart)):
        model.save_pretrained(tmp_path / str(number))
        again = build(PretrainedStudent(path=str(tmp_path / str(number))), auto_class)
        torch.testing.assert_close(run(again).logits, run(model).logits)


@pytest.mark.parametrize(
    ("kept", "message"),
    [((1, 3), r"keep_layers = \[1, 3\]: the checkpoint has 2 layers"), ((2, 1), "strictly increasing"), ((0,), "0")],
)
def test_layers_that_a_checkpoint_has_not_are_refused(kept: tuple[int, ...], message: str, tmp_path: Path) -> None:
    build(TRANSFORMER, "AutoModel").save_pretrained(tmp_path)
    with pytest.raises((RecipeError, ValidationError), match=message):
        build(PretrainedStudent(path=str(tmp_path), keep_layers=kept), "AutoModel")


def test_layers_that_cannot_stand_where_they_would_are_refused(tmp_path: Path) -> None:
    """The first layer of ModernBERT has no norm in front of it."""
    spec = TransformerStudent(layers=3, hidden_size=16, heads=2, model_type="modernbert")
    build(spec, "AutoModel").save_pretrained(tmp_path)
    assert len(layers_of(build(PretrainedStudent(path=str(tmp_path), keep_layers=(1, 2)), "AutoModel"))) == 2
    with pytest.raises(RecipeError, match="'modernbert' has layers of different kinds"):
        build(PretrainedStudent(path=str(tmp_path), keep_layers=(2, 3)), "AutoModel")


def test_layers_of_a_model_without_a_plain_stack_are_not_chosen(tmp_path: Path) -> None:
    build(TransformerStudent(layers=2, hidden_size=16, heads=2, model_type="albert"), "AutoModel").save_pretrained(
        tmp_path
    )
    with pytest.raises(RecipeError, match="'albert' has no plain stack of layers"):
        build(PretrainedStudent(path=str(tmp_path), keep_layers=(1,)), "AutoModel")


def test_the_head_of_another_task_is_replaced_whatever_its_labels(tmp_path: Path) -> None:
    path = save_bert(tmp_path, ("positive", "negative"))
    student = build(PretrainedStudent(path=path), "AutoModelForTokenClassification")
    body = BertForSequenceClassification.from_pretrained(path).bert
    assert student.config.id2label == dict(enumerate(LABELS))
    torch.testing.assert_close(
        student.bert.embeddings.word_embeddings.weight, body.embeddings.word_embeddings.weight, rtol=0, atol=0
    )


def test_a_checkpoint_in_half_precision_is_trained_in_float32(tmp_path: Path) -> None:
    student = build(PretrainedStudent(path=save_bert(tmp_path, LABELS, torch.bfloat16)))
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}


def test_a_checkpoint_without_a_padding_token_takes_the_tokenizers(tmp_path: Path) -> None:
    build(TRANSFORMER, "AutoModelForCausalLM", pad_token_id=None).save_pretrained(tmp_path)
    student = build(PretrainedStudent(path=str(tmp_path)), pad_token_id=7)
    assert student.config.pad_token_id == 7


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_width_that_the_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ValidationError, match="hidden_size = 30 cannot be divided among heads = 4"):
        TransformerStudent(layers=1, hidden_size=30, heads=4)


@pytest.mark.parametrize("auto_class", ["AutoModelForMaskedLM", "AutoModelForCausalLM"])
def test_a_bilstm_for_a_vocabulary_is_refused(auto_class: str) -> None:
    with pytest.raises(RecipeError, match=f"lectern_bilstm.*{auto_class}"):
        build(BILSTM, auto_class)


def test_a_decoder_without_the_tasks_head_is_refused() -> None:
    with pytest.raises(RecipeError, match="'llama' has no head for AutoModelForMaskedLM"):
        build(TRANSFORMER.model_copy(update={"model_type": "llama"}), "AutoModelForMaskedLM")


def test_an_unknown_head_or_model_type_is_refused() -> None:
    with pytest.raises(RecipeError, match="'AutoModelForSpeech'"):
        build(BILSTM, "AutoModelForSpeech")
    with pytest.raises(RecipeError, match="'bart2'"):
        build(TRANSFORMER.model_copy(update={"model_type": "bart2"}))


def test_a_model_type_that_cannot_have_the_shape_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'mamba' has no .*num_attention_heads"):
        build(TRANSFORMER.model_copy(update={"model_type": "mamba"}), "AutoModelForCausalLM")
    with pytest.raises(RecipeError, match="'gpt_neo' cannot have the given shape"):
        build(TRANSFORMER.model_copy(update={"model_type": "gpt_neo"}), "AutoModelForCausalLM")


def test_a_roberta_without_a_padding_token_is_refused() -> None:
    with pytest.raises(RecipeError, match="roberta student needs a padding token"):
        build(TRANSFORMER.model_copy(update={"model_type": "roberta"}), pad_token_id=None)


@pytest.mark.parametrize("spec", [BILSTM, TRANSFORMER])
def test_a_fresh_student_that_is_narrower_than_the_tokenizer_is_refused(spec: Any) -> None:
    with pytest.raises(RecipeError, match="vocabulary has 50 ids, but the tokenizer has 51"):
        build(spec, tokenizer_size=51)


def test_a_checkpoint_that_is_narrower_than_the_tokenizer_is_refused(tmp_path: Path) -> None:
    path = save_bert(tmp_path, LABELS)
    assert build(PretrainedStudent(path=path), tokenizer_size=49).config.vocab_size == 50
    with pytest.raises(RecipeError, match="has 50 ids, but the tokenizer has 60"):
        build(PretrainedStudent(path=path), tokenizer_size=60)


def test_a_checkpoint_with_too_few_positions_is_refused(tmp_path: Path) -> None:
    path = save_bert(tmp_path, LABELS)
    with pytest.raises(RecipeError, match="at most 12 tokens, but the dump's rows have up to 13"):
        build(PretrainedStudent(path=path), max_length=13)
    build(TRANSFORMER.model_copy(update={"model_type": "roberta"})).save_pretrained(tmp_path / "roberta")
    with pytest.raises(RecipeError, match="at most 12 tokens, but the dump's rows have up to 13"):
        build(PretrainedStudent(path=str(tmp_path / "roberta")), max_length=13)


def test_a_checkpoint_that_is_missing_or_damaged_or_not_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such folder"):
        build(PretrainedStudent(path=str(tmp_path / "nowhere")))
    path = save_bert(tmp_path / "damaged", LABELS)
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RecipeError, match=r"damaged: no model for .* can be loaded"):
        build(PretrainedStudent(path=path))
    weights.unlink()
    torch.save({}, tmp_path / "damaged" / "pytorch_model.bin")
    with pytest.raises(RecipeError, match=r"damaged: no model for .* can be loaded"):
        build(PretrainedStudent(path=path))
