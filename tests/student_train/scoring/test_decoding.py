"""Taggers with and without learnt transitions: trained, saved, loaded, decoded by Viterbi, and resumed."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification

from shared.errors import RecipeError, UsageError
from shared.text.columns import ScoredColumns
from shared.text.metrics import entity_f1
from student_train import distill
from student_train.chains.transitions import FILE_NAME, SUBMODULE, transitions_of
from student_train.data.batches import in_order
from student_train.data.sources import DumpSource
from student_train.scoring.evaluate import evaluate
from student_train.scoring.models import load_model
from student_train.scoring.predictions import predictions_of
from tests.student_train.runs import BILSTM, GOLD, TRANSFORMER, recipe

TASK, TAGS = "token-classification", ("O", "B-X", "I-X")
STRUCTURE = {"kind": "structure"}


@pytest.fixture(scope="module")
def dump(dumps: dict[str, Path]) -> Path:
    return dumps[TASK]


@pytest.fixture(scope="module")
def crf(dump: Path, corpora: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BiLSTM with transitions, trained on the teacher's distributions over paths and then on gold tags."""
    output = tmp_path_factory.mktemp("crf") / "student"
    stages = [
        {"name": "paths", "loss": [STRUCTURE, {"kind": "k-best", "k": 3, "fuzzy": True}]},
        {"name": "gold", "loss": [{"kind": "crf-gold"}], "rows": "labelled"},
    ]
    training = {"learning_rate": 0.05, "max_steps": 6}
    sections = {"validation": {"share": 0.2, "every_steps": 3, "metric": "f1"}, "eval": {"data": [str(corpora[TASK])]}}
    made = recipe(output, {**BILSTM, "crf": True}, dump=dump, stage=stages, training=training, **sections)
    distill.run(made, resume=False)
    return output


def test_a_crf_is_a_plain_model_and_a_file_of_transitions(crf: Path) -> None:
    assert not [name for name in load_file(crf / "model.safetensors") if SUBMODULE in name]
    model, info = AutoModelForTokenClassification.from_pretrained(crf, output_loading_info=True)
    assert not any(info.values())
    assert transitions_of(model) is None
    content = json.loads((crf / FILE_NAME).read_text())
    assert content["labels"] == list(TAGS)
    learnt = transitions_of(load_model(crf, None)[0])
    assert learnt is not None
    for mine, kept in zip(learnt, (content["between"], content["first"], content["last"]), strict=True):
        assert torch.equal(mine, torch.tensor(kept))
        assert mine.abs().max() > 0.01
    assert FILE_NAME in (crf / "README.md").read_text()
    assert {stage["metric"] for stage in json.loads((crf / "stages.json").read_text())} == {"f1"}


def test_a_crf_is_decoded_by_viterbi_unless_told_otherwise(crf: Path, corpora: dict[str, Path]) -> None:
    def score(**options: Any) -> Any:
        return evaluate(crf, [str(corpora[TASK])], ScoredColumns(), device="cpu", **options)

    default, argmax = score(), score(decode="argmax")
    assert (default.decode, argmax.decode) == ("viterbi", "argmax")
    assert default.metrics == score(decode="viterbi").metrics != argmax.metrics
    kept = json.loads((crf / "metrics.json").read_text())
    assert kept["metrics"] == pytest.approx(default.metrics)
    assert kept["decode"] == "viterbi"
    assert ("decoded by", "viterbi") in default.table()
    assert "decoded by" not in dict(argmax.table())


def best_path(logits_LC: torch.Tensor, learnt: Any) -> list[int]:
    """The legal path with the highest score, out of all."""
    found: list[tuple[float, list[int]]] = []
    for path in itertools.product(range(3), repeat=len(logits_LC)):
        if any(tag == 2 and before == 0 for before, tag in itertools.pairwise((0, *path))):
            continue
        score = sum(logits_LC[at, tag] for at, tag in enumerate(path))
        if learnt is not None:
            score += learnt.first_C[path[0]] + learnt.last_C[path[-1]]
            score += sum(learnt.between_CC[before, tag] for before, tag in itertools.pairwise(path))
        found.append((float(score), list(path)))
    return max(found)[1]


@pytest.mark.parametrize("has_crf", [True, False])
def test_predictions_are_the_best_legal_paths(has_crf: bool, crf: Path, teachers: dict[str, Path], dump: Path) -> None:
    """Of a student with transitions, and of a teacher without."""
    model, _ = load_model(crf if has_crf else teachers[TASK], None)
    learnt, source = transitions_of(model), DumpSource(dump)
    predicted = dict(zip((p := predictions_of(model, source, decode="viterbi")).rows, p.predicted, strict=True))
    plain = dict(zip((p := predictions_of(model, source, decode="argmax")).rows, p.predicted, strict=True))
    checked = differ = 0
    with torch.no_grad():
        for batch in in_order(source, [], 1):
            logits_LC = model(**batch.inputs).logits[0][batch.positions].double()
            row = int(batch.rows)
            if 0 < len(logits_LC) <= 8:
                assert predicted[row].tolist() == best_path(logits_LC, learnt)
                checked += 1
            assert plain[row].tolist() == logits_LC.argmax(-1).tolist()
            differ += predicted[row].tolist() != plain[row].tolist()
    assert checked > 5
    assert differ > 5


def test_a_student_without_transitions_is_decoded_by_legality_if_asked(
    dump: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    section = {"data": [str(corpora[TASK])], "decode": "viterbi"}
    result = distill.run(recipe(tmp_path / "a", TRANSFORMER, STRUCTURE, dump=dump, eval=section), resume=False)
    assert result.report is not None
    assert result.report.decode == "viterbi"
    assert not (result.output / FILE_NAME).exists()
    assert FILE_NAME not in (result.output / "README.md").read_text()
    model, _ = load_model(result.output, None)
    legal = predictions_of(model, DumpSource(dump), decode="viterbi")
    for tags in legal.predicted:
        assert not any(tag == 2 and before == 0 for before, tag in itertools.pairwise((0, *tags)))
    assert entity_f1(legal) == pytest.approx(result.report.metrics)
    plain = evaluate(result.output, [str(corpora[TASK])], ScoredColumns(), device="cpu")
    assert plain.decode == "argmax"


def test_a_killed_run_goes_on_with_its_transitions(dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a checkpoint, and from the end of a stage."""
    stages = [{"name": "one", "loss": [STRUCTURE]}, {"name": "two", "loss": [{"kind": "crf-gold"}]}]
    training = {"max_steps": 4, "save_steps": 2, "learning_rate": 0.05}

    def made(name: str) -> Any:
        return recipe(tmp_path / name, {**BILSTM, "crf": True}, dump=dump, stage=stages, training=training)

    distill.run(made("straight"), resume=False)
    value, calls = torch.Tensor.backward, [0]

    def dies(self: torch.Tensor, *given: Any, **options: Any) -> None:
        calls[0] += 1
        if calls[0] in (4, 9):
            raise KeyboardInterrupt
        value(self, *given, **options)

    monkeypatch.setattr(torch.Tensor, "backward", dies)
    for is_later in (False, True):
        with pytest.raises(KeyboardInterrupt):
            distill.run(made("killed"), resume=is_later)
    distill.run(made("killed"), resume=True)
    one, other = (json.loads((tmp_path / name / FILE_NAME).read_text()) for name in ("straight", "killed"))
    assert one == other


def test_a_crf_learns_from_gold_tags_of_files(
    teachers: dict[str, Path], corpora: dict[str, Path], tmp_path: Path
) -> None:
    files = {"task": TASK, "train": [str(corpora[TASK])], "tokenizer": str(teachers[TASK]), "max_length": 64}
    made = recipe(tmp_path / "gold", {**BILSTM, "crf": True}, {"kind": "crf-gold"}, data={**files, "labels": TAGS})
    content = json.loads((distill.run(made, resume=False).output / FILE_NAME).read_text())
    assert any(score != 0 for scores in content["between"] for score in scores)


def test_a_trained_crf_goes_on_from_its_own_transitions(crf: Path, dump: Path, tmp_path: Path) -> None:
    training = {"max_steps": 1, "learning_rate": 1e-9}
    student = {"kind": "pretrained", "path": str(crf), "crf": True}
    result = distill.run(recipe(tmp_path / "b", student, STRUCTURE, dump=dump, training=training), resume=False)
    before, after = (json.loads((folder / FILE_NAME).read_text()) for folder in (crf, result.output))
    torch.testing.assert_close(torch.tensor(after["between"]), torch.tensor(before["between"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not the transitions of a model"),
        ('{"labels": ["O"], "between": [[0]], "first": [0, 1], "last": [0]}', "there are 1 labels, and not as many"),
        ('{"labels": ["O"], "between": [[1e999]], "first": [0], "last": [0]}', "not the transitions of a model"),
        ('{"labels": ["O"], "between": [[0]], "first": [0], "last": [0]}', "its labels are O, and not the model's"),
    ],
)
def test_a_damaged_file_of_transitions_is_told(content: str, message: str, crf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(crf, folder)
    (folder / FILE_NAME).write_text(content)
    with pytest.raises(RecipeError, match=rf"{FILE_NAME}: .*{message}"):
        load_model(folder, None)


def test_viterbi_is_for_tags_that_follow_a_scheme(
    teachers: dict[str, Path],
    corpora: dict[str, Path],
    dumps: dict[str, Path],
    make_dump: Callable[..., Path],
    make_teacher: Callable[..., Path],
    tmp_path: Path,
) -> None:
    other = "sequence-classification"
    with pytest.raises(UsageError, match="--decode viterbi is for tags of words"):
        evaluate(teachers[other], [str(corpora[other])], ScoredColumns(), device="cpu", decode="viterbi")
    options: dict[str, Any] = {"device": "cpu", "decode": "viterbi", "positions": "all"}
    with pytest.raises(UsageError, match="--decode viterbi is for tags of words"):
        evaluate(teachers[TASK], [str(corpora[TASK])], ScoredColumns(), **options)
    with pytest.raises(UsageError, match="--decode 'best' is unknown; the valid ones are argmax, viterbi"):
        evaluate(teachers[TASK], [str(corpora[TASK])], ScoredColumns(), device="cpu", decode="best")  # type: ignore[arg-type]
    names = {"id2label": {0: "N", 1: "V"}, "label2id": {"N": 0, "V": 1}}
    teacher, rows = make_teacher(TASK, **names), [{"tokens": ["the", "fox"], "tags": ["N", "V"]}] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = tmp_path / "rows.jsonl"
    with pytest.raises(UsageError, match=r"the labels \(N, V\) follow none of BIO, IOBES and BILOU"):
        evaluate(teacher, [str(data)], ScoredColumns(), device="cpu", decode="viterbi")
    dump, section = make_dump(TASK, teacher=teacher, data=data), {"data": [str(data)], "decode": "viterbi"}
    with pytest.raises(UsageError, match=r"eval\.decode = viterbi: the labels"):
        distill.run(recipe(tmp_path / "d", TRANSFORMER, GOLD, dump=dump, eval=section), resume=False)
    assert not (tmp_path / "d").exists()
