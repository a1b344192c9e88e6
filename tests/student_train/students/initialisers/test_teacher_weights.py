"""Students that start from their teacher's weights: which parts they get, and what is refused."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from shared.errors import RecipeError
from student_train.students.initialisers.base import uniform
from tests.student_train.students.initialisers.teachers import (
    ARCHITECTURES,
    HEADS,
    LAYERS,
    NEURONS,
    WHOLE,
    WIDTH,
    importance_of,
    output_of,
    student_of,
    teacher_of,
)

BY_IMPORTANCE = {"kind": "extract", "by": "importance"}
AT_RANDOM = {"kind": "extract", "by": "random"}
HALF = {"layers": 2, "hidden_size": 12, "heads": 2, "intermediate_size": 20}
HEAD_SIZE = WIDTH // HEADS


def best(scores: torch.Tensor, count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda index: -scores[index])[:count])


# ---------------------------------------------------------------- nothing dropped


@pytest.mark.parametrize(
    "start", [{"kind": "layers"}, AT_RANDOM, BY_IMPORTANCE, {"kind": "squeeze", "by": "random"}], ids=str
)
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_student_of_the_teachers_shape_computes_what_the_teacher_does(model_type: str, start: dict[str, Any]) -> None:
    teacher = teacher_of(model_type)
    student = student_of(teacher, start, intermediate_size=NEURONS)
    assert torch.equal(output_of(student), output_of(teacher))


def test_a_narrow_table_of_word_embeddings_stays_and_a_full_one_is_cut_like_the_layers() -> None:
    narrow = student_of(teacher_of("electra"), AT_RANDOM, **HALF)
    full = student_of(teacher_of("electra", embedding_size=WIDTH), AT_RANDOM, **HALF)
    assert narrow.get_input_embeddings().weight.shape[1] == 16
    assert narrow.electra.embeddings_project.weight.shape == (12, 16)
    assert full.get_input_embeddings().weight.shape[1] == 12
    assert not hasattr(full.electra, "embeddings_project")


def test_the_student_has_the_teachers_configuration_but_for_its_shape_labels_and_dropout() -> None:
    teacher = teacher_of("bert", "AutoModelForTokenClassification", hidden_act="relu", layer_norm_eps=0.5)
    student = student_of(teacher, AT_RANDOM, "AutoModelForTokenClassification", **HALF, dropout=0.2)
    assert (student.config.hidden_act, student.config.layer_norm_eps) == ("relu", 0.5)
    assert (student.config.hidden_dropout_prob, student.config.id2label) == (0.2, {0: "a", 1: "b"})
    assert student.config.max_position_embeddings == teacher.config.max_position_embeddings


def test_what_the_configuration_says_of_each_layer_goes_with_it() -> None:
    kinds = ["full_attention", "sliding_attention"] * 2
    teacher = teacher_of("qwen3", layer_types=kinds, sliding_window=3, use_sliding_window=True)
    student = student_of(teacher, {"kind": "layers", "numbers": [2, 4]}, layers=2, intermediate_size=NEURONS)
    assert student.config.layer_types == ["sliding_attention"] * 2


def test_the_inner_width_is_by_default_in_the_teachers_ratio() -> None:
    student = student_of(teacher_of("llama"), AT_RANDOM, layers=1, hidden_size=12, heads=2)
    assert student.config.intermediate_size == NEURONS // 2


def test_a_teacher_in_bfloat16_gives_a_student_in_float32() -> None:
    teacher = teacher_of("llama").bfloat16()
    config = {**teacher.config.to_dict(), "dtype": "bfloat16"}
    student = student_of(teacher, AT_RANDOM, intermediate_size=NEURONS, config=config)
    assert {value.dtype for value in student.parameters()} == {torch.float32}
    assert torch.equal(student.model.norm.weight, teacher.model.norm.weight.float())


# ---------------------------------------------------------------- which parts


def test_layers_are_spread_evenly_or_those_with_the_numbers() -> None:
    assert [uniform(12, count) for count in (1, 4, 5, 12)] == [(0,), (0, 3, 6, 9), (0, 2, 4, 7, 9), tuple(range(12))]
    teacher = teacher_of("bert")
    layers = teacher.bert.encoder.layer
    for start, numbers in (({"kind": "layers"}, (0, 2)), ({"kind": "layers", "numbers": [2, 4]}, (1, 3))):
        student = student_of(teacher, start, layers=2, intermediate_size=NEURONS)
        for own, number in zip(student.bert.encoder.layer, numbers, strict=True):
            for (name, value), (other, theirs) in zip(
                own.named_parameters(), layers[number].named_parameters(), strict=True
            ):
                assert name == other
                assert torch.equal(value, theirs)


def test_every_weight_of_an_extracted_bert_is_the_slice_of_the_most_important_parts() -> None:
    teacher = teacher_of("bert")
    importance, theirs = importance_of(teacher), teacher.state_dict()
    student = student_of(teacher, BY_IMPORTANCE, **HALF).state_dict()
    residual = best(importance["residual"], 12)
    expected: dict[str, torch.Tensor] = {}
    for own, layer in enumerate((0, 2)):
        rows = [head * HEAD_SIZE + at for head in best(importance["heads"][layer], 2) for at in range(HEAD_SIZE)]
        neurons = best(importance["neurons"][layer], 20)
        to, source = f"bert.encoder.layer.{own}.", f"bert.encoder.layer.{layer}."
        for name, axes in {
            "attention.self.query": (rows, residual),
            "attention.self.key": (rows, residual),
            "attention.self.value": (rows, residual),
            "attention.output.dense": (residual, rows),
            "intermediate.dense": (neurons, residual),
            "output.dense": (residual, neurons),
        }.items():
            expected[f"{to}{name}.weight"] = theirs[f"{source}{name}.weight"][axes[0]][:, axes[1]]
            expected[f"{to}{name}.bias"] = theirs[f"{source}{name}.bias"][axes[0]]
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            for part in ("weight", "bias"):
                expected[f"{to}{name}.{part}"] = theirs[f"{source}{name}.{part}"][residual]
    transform = "cls.predictions.transform.dense.weight"
    expected[transform] = theirs[transform][residual][:, residual]
    for name in ("cls.predictions.bias", "cls.predictions.decoder.bias"):
        expected[name] = theirs[name]
    for name in student.keys() - expected.keys():
        assert "embeddings" in name or name.startswith("cls.predictions"), name
        expected[name] = theirs[name][..., residual]
    assert expected.keys() == student.keys()
    for name, value in student.items():
        assert torch.equal(value, expected[name]), name


def test_grouped_heads_are_kept_in_whole_groups_with_their_keys_and_values() -> None:
    teacher = teacher_of("llama")
    importance = importance_of(teacher)
    importance["heads"] = torch.tensor([[0.9, 0.0, 0.5, 0.5]] * LAYERS)  # the second group is better as a whole
    student = student_of(teacher, BY_IMPORTANCE, **HALF, importance=importance)
    theirs, own = teacher.model.layers[2].self_attn, student.model.layers[1].self_attn
    residual = best(importance["residual"], 12)
    assert (student.config.num_attention_heads, student.config.num_key_value_heads) == (2, 1)
    assert torch.equal(own.q_proj.weight, theirs.q_proj.weight[12:24][:, residual])
    assert torch.equal(own.k_proj.weight, theirs.k_proj.weight[6:12][:, residual])
    assert torch.equal(own.v_proj.weight, theirs.v_proj.weight[6:12][:, residual])
    assert torch.equal(own.o_proj.weight, theirs.o_proj.weight[residual][:, 12:24])


def test_a_group_may_lose_heads_where_whole_groups_do_not_make_the_number() -> None:
    teacher = teacher_of("qwen3", num_attention_heads=6)
    importance = importance_of(teacher)
    importance["heads"] = torch.tensor([[0.9, 0.1, 0.8, 0.1, 0.7, 0.6]] * LAYERS)
    student = student_of(teacher, BY_IMPORTANCE, layers=1, hidden_size=24, heads=4, importance=importance)
    assert student.config.num_key_value_heads == 2
    rows = [head * 10 + at for head in (0, 2, 4, 5) for at in range(10)]
    assert torch.equal(
        student.model.layers[0].self_attn.q_proj.weight, teacher.model.layers[0].self_attn.q_proj.weight[rows]
    )


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_neurons_and_heads_that_give_nothing_can_be_dropped_without_a_change(model_type: str) -> None:
    teacher = teacher_of(model_type)
    importance = importance_of(teacher)
    drops_heads = model_type in ("llama", "qwen3")  # elsewhere fewer heads are wider ones
    for path, module in teacher.named_modules():
        if path.endswith(("output.dense", "down_proj", "lin2", "fc2")) and "attention" not in path:
            layer = int(next(part for part in path.split(".") if part.isdecimal()))
            dead = importance["neurons"][layer].argsort()[: NEURONS // 2]
            module.weight.data[:, dead] = 0
        elif path.endswith("o_proj") and drops_heads:
            layer = int(next(part for part in path.split(".") if part.isdecimal()))
            group = importance["heads"][layer].reshape(2, 2).sum(1).argmin()
            module.weight.data.unflatten(1, (2, -1))[:, group] = 0
    keys = {"intermediate_size": NEURONS // 2, "heads": HEADS // 2 if drops_heads else HEADS}
    student = student_of(teacher, BY_IMPORTANCE, **keys, importance=importance)
    torch.testing.assert_close(output_of(student), output_of(teacher))


def test_random_parts_depend_on_the_seed_alone() -> None:
    teacher = teacher_of("distilbert")
    first, second = (student_of(teacher, AT_RANDOM, **HALF).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    own = first["distilbert.embeddings.word_embeddings.weight"]
    theirs = teacher.distilbert.embeddings.word_embeddings.weight
    kept = [int((column == theirs.T).all(1).nonzero()) for column in own.T]
    assert kept == sorted(set(kept))
    assert kept != best(importance_of(teacher)["residual"], 12)


# ---------------------------------------------------------------- dimensions within heads


def _variances(attention: Any, residual: list[int], heads: int) -> torch.Tensor:
    """The variance of each head's scores for inputs with independent entries of variance 1, in float64."""
    query, key = attention.query, attention.key
    asks = torch.cat([query.weight[:, residual], query.bias[:, None]], 1).double().unflatten(0, (heads, -1))
    keys = key.weight[:, residual].double().unflatten(0, (heads, -1))
    return (asks.mT @ keys).square().sum((1, 2)) / asks.shape[1]


def test_scores_vary_as_before_where_heads_lose_important_dimensions() -> None:
    teacher = teacher_of("bert")
    importance = importance_of(teacher)
    student = student_of(teacher, BY_IMPORTANCE, layers=2, hidden_size=12, heads=HEADS, importance=importance)
    _check_variances(teacher, student, best(importance["residual"], 12))


def test_scores_vary_as_before_where_heads_lose_dimensions_at_random() -> None:
    teacher = teacher_of("bert")
    for module in teacher.bert.encoder.modules():
        if isinstance(module, torch.nn.Linear):  # which residual dimensions are drawn does not matter
            module.weight.data = module.weight.data[:, :1].expand_as(module.weight).clone()
    student = student_of(teacher, AT_RANDOM, layers=2, hidden_size=12, heads=HEADS)
    _check_variances(teacher, student, list(range(12)))


def _check_variances(teacher: PreTrainedModel, student: PreTrainedModel, residual: list[int]) -> None:
    for own, layer in enumerate((0, 2)):
        theirs = _variances(teacher.bert.encoder.layer[layer].attention.self, residual, HEADS)
        now = _variances(student.bert.encoder.layer[own].attention.self, list(range(12)), HEADS)
        torch.testing.assert_close(now, theirs, rtol=1e-4, atol=0)


def test_by_importance_dimensions_within_heads_are_those_of_the_largest_weights() -> None:
    teacher = teacher_of("bert")
    layer = teacher.bert.encoder.layer[0].attention
    with torch.no_grad():
        for row in (1, 4, 5):  # of the first head
            layer.self.query.weight[row] *= 100
            layer.self.value.weight[5 - row] *= 100
    student = student_of(teacher, BY_IMPORTANCE, layers=1, hidden_size=12, heads=HEADS)
    residual = best(importance_of(teacher)["residual"], 12)
    own = student.bert.encoder.layer[0].attention
    assert torch.equal(own.self.key.weight[:3], layer.self.key.weight[[1, 4, 5]][:, residual])
    assert torch.equal(own.self.value.weight[:3], layer.self.value.weight[[0, 1, 4]][:, residual])
    assert torch.equal(own.output.dense.weight[:, :3], layer.output.dense.weight[residual][:, [0, 1, 4]])
    ratio = own.self.query.weight[:3] / layer.self.query.weight[[1, 4, 5]][:, residual]
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio))
    torch.testing.assert_close(own.self.query.bias[:3], layer.self.query.bias[[1, 4, 5]] * ratio[0, 0])


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("model_type", "keys", "message"),
    [
        ("bert", {"layers": 5}, r"student\.layers = 5: the teacher has 4"),
        ("bert", {"hidden_size": 48}, r"student\.hidden_size = 48: the teacher has 24"),
        ("bert", {"heads": 8}, r"student\.heads = 8: the teacher has 4"),
        ("bert", {"intermediate_size": 41}, r"student\.intermediate_size = 41: the teacher has 40"),
        ("bert", {"heads": 2}, r"student\.heads = 2: heads of 24 / 2 = 12 dimensions would be wider .* at least 4"),
        ("llama", {"heads": 3}, r"student\.heads = 3: cannot be divided among at most 2 groups of at most 2"),
        ("bert", {"model_type": "roberta"}, r"student\.model_type = 'roberta': the teacher is a 'bert'"),
        ("llama", {"tie_embeddings": True}, r"student\.tie_embeddings = true: the teacher's are not tied"),
        ("esm", {"hidden_size": 12}, r"student\.heads = 4: heads with rotary positions .* choose heads = 2"),
        ("albert", {}, r"a model of type 'albert' \(it has no plain stack of layers\)"),
        ("gpt2", {}, r"a model of type 'gpt2' \(its layers have attn\.c_attn \(Conv1D\), whose axes are not known"),
        ("bert-decoder", {}, r"layer 1 has 2 matrices of the kind 'query'"),
        ("electra", {"hidden_size": 16}, r"embeddings_project\.\w+ has no place in a student of this shape"),
    ],
)
def test_a_student_that_the_teacher_cannot_begin_is_refused_by_its_key(
    model_type: str, keys: dict[str, Any], message: str
) -> None:
    config: dict[str, Any] = {
        "esm": {"position_embedding_type": "rotary", "mask_token_id": 1},
        "bert-decoder": {"is_decoder": True, "add_cross_attention": True},
    }.get(model_type, {})
    teacher = teacher_of(model_type.removesuffix("-decoder"), "AutoModel", **config)
    with pytest.raises(RecipeError, match=message):
        student_of(teacher, AT_RANDOM, "AutoModel", **keys)


@pytest.mark.parametrize("start", [{"kind": "layers"}, {"kind": "factorise", "rank": 2}], ids=str)
@pytest.mark.parametrize(
    "keys", [{"hidden_size": 12, "heads": 2}, {"intermediate_size": 39}], ids=["hidden_size", "intermediate_size"]
)
def test_whole_layers_have_the_teachers_sizes(start: dict[str, Any], keys: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=rf"student\.{next(iter(keys))} = .*{start['kind']!r} takes whole layers"):
        student_of(teacher_of("bert"), start, **keys)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [([1, 5], r"student\.start\.numbers = \[1, 5\]: the teacher has 4"), ([1], r"these are 1 layers.*is 2")],
)
def test_numbers_of_layers_that_do_not_fit_are_refused(numbers: list[int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        student_of(teacher_of("bert"), {"kind": "layers", "numbers": numbers}, layers=2)


def test_weights_that_the_dump_does_not_have_are_named() -> None:
    teacher = teacher_of("bert")
    some = {name: value for name, value in teacher.state_dict().items() if "layer.2." not in name}
    with pytest.raises(RecipeError, match=r"no bert\.encoder\.layer\.2\.attention\.self\.query\.weight of the teacher"):
        student_of(teacher, AT_RANDOM, layers=2, tensors=some)
    kept = student_of(teacher, {"kind": "layers", "numbers": [2, 4]}, layers=2, tensors=some)
    assert torch.equal(_first(kept), teacher.bert.encoder.layer[1].output.dense.weight)
    del some["bert.embeddings.position_embeddings.weight"]
    with pytest.raises(RecipeError, match=r"no bert\.embeddings\.position_embeddings\.weight of the teacher"):
        student_of(teacher, {"kind": "layers", "numbers": [2, 4]}, layers=2, tensors=some)


def _first(student: PreTrainedModel) -> torch.Tensor:
    return student.bert.encoder.layer[0].output.dense.weight


def test_a_tied_weight_may_be_there_under_one_of_its_names() -> None:
    teacher = teacher_of("qwen3")
    once = {name: value for name, value in teacher.state_dict().items() if name != "lm_head.weight"}
    student = student_of(teacher, {"kind": "layers"}, tensors=once, intermediate_size=NEURONS)
    assert torch.equal(output_of(student), output_of(teacher))


def test_importance_of_another_model_is_refused() -> None:
    teacher = teacher_of("bert")
    importance = importance_of(teacher)
    importance["neurons"] = importance["neurons"][:, 1:]
    with pytest.raises(RecipeError, match=r"of the teacher's neurons in the dump is of the shape \[4, 39\].*\[4, 40\]"):
        student_of(teacher, BY_IMPORTANCE, importance=importance, **HALF)


@pytest.mark.parametrize("config", [{"model_type": "nobody"}, {"model_type": "bert", "hidden_size": "wide"}], ids=str)
def test_a_configuration_that_transformers_does_not_know_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"student\.start: "):
        student_of(teacher_of("bert"), AT_RANDOM, config=config, **WHOLE)
