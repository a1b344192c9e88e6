"""Word embeddings from the teacher's: the best compression, scaled as random ones are, from dump to student."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from shared import Dump
from shared.errors import DumpError, RecipeError
from student_train import distill
from student_train.recipe.recipe import Recipe
from student_train.students import BiLSTMStudent, Needs, StudentSpec, TransformerStudent, build_student
from student_train.students.initialisers.svd import compress

TEACHER_WIDTH, VOCABULARY = 12, 50
BILSTM = {"kind": "bilstm", "embedding_size": 8, "hidden_size": 8, "embeddings": "svd"}
TRANSFORMER = {"kind": "transformer", "layers": 1, "hidden_size": 16, "heads": 2, "embeddings": "svd"}


@pytest.fixture
def teacher_VD() -> Tensor:
    """Rows of unequal directions around a mean that is no zero."""
    generator = torch.Generator().manual_seed(0)
    spread_D = torch.linspace(3, 0.2, TEACHER_WIDTH)
    rotation_DD = torch.linalg.qr(torch.randn(TEACHER_WIDTH, TEACHER_WIDTH, generator=generator))[0]
    return torch.randn(VOCABULARY, TEACHER_WIDTH, generator=generator) * spread_D @ rotation_DD + 0.7


def build(spec: StudentSpec, word_embeddings_VD: Tensor | None, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    spec = spec.model_copy(update={"embeddings": "random" if word_embeddings_VD is None else "svd"})
    arguments: dict[str, Any] = {
        "auto_class": "AutoModelForSequenceClassification",
        "vocab_size": VOCABULARY,
        "tokenizer_size": VOCABULARY - 5,
        "label_names": ("a", "b"),
        "pad_token_id": 0,
        "max_length": 12,
        "word_embeddings_VD": word_embeddings_VD,
    }
    return build_student(spec, Needs(**arguments | changes))


def table_of(model: PreTrainedModel) -> Tensor:
    weight: Tensor = model.get_input_embeddings().weight
    return weight.detach()


def root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


# --- compression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 5, 11])
def test_what_is_lost_is_the_sum_of_the_dropped_singular_values_squared(teacher_VD: Tensor, width: int) -> None:
    centred_VD = teacher_VD.double().numpy() - teacher_VD.double().numpy().mean(0)
    singular = np.linalg.svd(centred_VD, compute_uv=False)
    found_VE = compress(teacher_VD, width).double().numpy()
    best_map = np.linalg.lstsq(found_VE, centred_VD, rcond=None)[0]
    lost = np.square(centred_VD - found_VE @ best_map).sum()
    assert lost == pytest.approx(np.square(singular[width:]).sum(), rel=1e-5)


def test_centring_loses_less_than_the_plain_svd(teacher_VD: Tensor) -> None:
    plain = np.linalg.svd(teacher_VD.double().numpy(), compute_uv=False)
    centred = np.linalg.svd((teacher_VD - teacher_VD.mean(0)).double().numpy(), compute_uv=False)
    for width in range(1, TEACHER_WIDTH):
        assert np.square(centred[width:]).sum() < np.square(plain[width:]).sum()


def test_rows_are_the_coordinates_of_a_float64_svd_with_signs_fixed(teacher_VD: Tensor) -> None:
    centred_VD = teacher_VD.double().numpy() - teacher_VD.double().numpy().mean(0)
    _, _, directions_RD = np.linalg.svd(centred_VD, full_matrices=False)
    largest = np.take_along_axis(directions_RD, np.abs(directions_RD).argmax(1, keepdims=True), 1)
    expected_VE = centred_VD @ (directions_RD * np.sign(largest))[:5].T
    np.testing.assert_allclose(compress(teacher_VD, 5).numpy(), expected_VE, rtol=1e-4, atol=1e-5)
    assert torch.equal(compress(teacher_VD, 5), compress(teacher_VD, 5))


def test_half_precision_is_read_as_it_is(teacher_VD: Tensor) -> None:
    torch.testing.assert_close(compress(teacher_VD.half(), 5), compress(teacher_VD.half().float(), 5))


def test_embeddings_of_the_teachers_width_are_its_own(teacher_VD: Tensor) -> None:
    assert torch.equal(compress(teacher_VD, TEACHER_WIDTH), teacher_VD)


def test_wider_embeddings_than_the_teachers_are_refused(teacher_VD: Tensor) -> None:
    with pytest.raises(RecipeError, match="13 wide, but the teacher's 12"):
        compress(teacher_VD, 13)


# --- students --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        BiLSTMStudent(embedding_size=6, hidden_size=8),
        TransformerStudent(layers=1, hidden_size=6, heads=2),
        TransformerStudent(layers=1, hidden_size=6, heads=2, model_type="gpt2"),
    ],
    ids=["bilstm", "bert", "gpt2"],
)
def test_a_student_begins_from_them_at_the_size_of_random_ones(spec: StudentSpec, teacher_VD: Tensor) -> None:
    random, begun = build(spec, None), build(spec, teacher_VD)
    found_VE, expected_VE = table_of(begun), compress(teacher_VD, 6)
    factor = root_mean_square(table_of(random)) / root_mean_square(expected_VE)
    torch.testing.assert_close(found_VE, expected_VE * factor)
    assert root_mean_square(found_VE) == pytest.approx(root_mean_square(table_of(random)))
    others = [name for name, weight in begun.named_parameters() if weight.shape != found_VE.shape]
    assert others
    assert all(torch.equal(begun.get_parameter(name), random.get_parameter(name)) for name in others)
    assert begun.get_input_embeddings().weight.requires_grad


def test_rows_that_the_teacher_lacks_stay_random(teacher_VD: Tensor) -> None:
    spec = BiLSTMStudent(embedding_size=6, hidden_size=8)
    found_VE, random_VE = table_of(build(spec, teacher_VD[:45])), table_of(build(spec, None))
    assert torch.equal(found_VE[45:], random_VE[45:])
    assert (found_VE[:45] != random_VE[:45]).any(-1).all()


def test_rows_that_the_student_lacks_are_left_out(teacher_VD: Tensor) -> None:
    spec = BiLSTMStudent(embedding_size=TEACHER_WIDTH, hidden_size=8)
    found_VE = table_of(build(spec, teacher_VD, vocab_size=46))
    torch.testing.assert_close(found_VE / found_VE[0, 0], teacher_VD[:46] / teacher_VD[0, 0])


def test_a_trimmed_student_compresses_the_rows_that_it_keeps_alone(teacher_VD: Tensor) -> None:
    spec, kept_ids_K = BiLSTMStudent(embedding_size=6, hidden_size=8), torch.tensor([0, 1, 7, 9, 20, 21, 22, 30, 40])
    found_KE = table_of(build(spec, teacher_VD, kept_ids_K=kept_ids_K, unknown_id=1))
    expected_KE = compress(teacher_VD[kept_ids_K], 6)
    torch.testing.assert_close(
        found_KE, expected_KE * (root_mean_square(found_KE) / root_mean_square(expected_KE)), rtol=1e-4, atol=1e-6
    )


# --- from the dump to the student ------------------------------------------------------------------------------------


def recipe(output: Path, student: dict[str, Any], **sections: Any) -> Recipe:
    training = {"max_steps": 2, "batch_size": 8, "device": "cpu", "freeze_embeddings": True}
    return Recipe.model_validate(
        {"output": output, "student": student, "loss": [{"kind": "gold"}], "training": training, **sections}
    )


@pytest.mark.parametrize("student", [BILSTM, TRANSFORMER], ids=["bilstm", "transformer"])
def test_frozen_embeddings_of_a_saved_student_are_the_teachers(
    student: dict[str, Any], make_dump: Callable[..., Path], tmp_path: Path
) -> None:
    dump = make_dump(embeddings=True)
    distill.run(recipe(tmp_path / "student", student, dump=dump), resume=False)
    found_VE = table_of(AutoModelForSequenceClassification.from_pretrained(tmp_path / "student"))
    expected_VE = compress(Dump(dump).word_embeddings(), found_VE.shape[1])
    scale = root_mean_square(found_VE) / root_mean_square(expected_VE)
    torch.testing.assert_close(found_VE, expected_VE * scale)


def test_a_dump_without_them_is_refused_before_training(make_dump: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="dump again with --embeddings"):
        distill.run(recipe(tmp_path / "student", BILSTM, dump=make_dump()), resume=False)
    assert not (tmp_path / "student").exists()


def test_files_with_gold_labels_have_none(
    make_teacher: Callable[..., Path], write_corpus: Any, toy_rows: Any, tmp_path: Path
) -> None:
    rows = [row for row in toy_rows("sequence-classification") if row["label"] is not None]
    data = {
        "task": "sequence-classification",
        "train": [str(write_corpus(tmp_path / "rows.jsonl", rows))],
        "tokenizer": str(make_teacher("sequence-classification")),
    }
    with pytest.raises(RecipeError, match=r"'svd' needs a teacher's.*dump --embeddings"):
        distill.run(recipe(tmp_path / "student", BILSTM, data=data), resume=False)
