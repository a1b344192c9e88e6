"""What a dump holds is what transformers' own forward gives for each row alone, whatever the batches were.

The reference knows nothing of Lectern: transformers' tokenizer call, one row, no padding, the model's own logits, and
a float64 log-softmax.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from shared import Dump
from shared.dump.codecs import Dense, DenseTargets, LogitStep, SparseTargets
from shared.dump.integrity.receipts import shard_path
from shared.dump.rowgroup import to_flat
from shared.dump.shards import open_shard, read_row_group
from shared.text.corpus import Example
from shared.text.tasks import task_named
from shared.text.tokenized import Tokenizing
from teacher_dump.engines import devices
from teacher_dump.engines.transformers.loading import describe, load_teacher
from teacher_dump.request import Request

# What batching and another order of sums may do to a float32 log-probability; the codec's own error comes on top.
NOISE = 1e-4
LEVELS = 60_000
MAX_LENGTH = 24

# Rows alone in their batch, batches of odd lengths with padding, and everything in one batch.
BUDGETS = (1, 77, 100_000)


@dataclass(frozen=True)
class Recorded:
    """One row as a dump gives it back: ids_PK, log_probs_PK, tail_P, labels [P] (None where missing)."""

    ids: Tensor
    log_probs: Tensor
    tail: Tensor
    labels: list[int | None]


@pytest.fixture(scope="module")
def mixed(texts: list[str]) -> list[str]:
    """Odd lengths in no order, one text that is cut, two alike, and an empty one."""
    return [*texts[:13], "fox", "fox", "", max(texts, key=len)]


@pytest.fixture(scope="module")
def reference() -> Callable[..., Any]:
    """reference(teacher, task, *texts or input_ids tensor) -> (input ids, the model's output) of that row alone."""
    loaded: dict[tuple[Path, str], tuple[Any, Any]] = {}
    outputs: dict[tuple[Path, str, str], Any] = {}

    def run(teacher: Path, task: str, *row: Any, **options: Any) -> tuple[list[int], Any]:
        if (teacher, task) not in loaded:
            model = getattr(transformers, task_named(task).auto_class).from_pretrained(teacher).eval()
            loaded[teacher, task] = AutoTokenizer.from_pretrained(teacher), model
        tokenizer, model = loaded[teacher, task]
        if isinstance(row[0], Tensor):
            inputs = {"input_ids": row[0][None], "attention_mask": torch.ones_like(row[0])[None]}
        else:
            inputs = tokenizer(*row, truncation=True, max_length=MAX_LENGTH, return_tensors="pt", **options)
        ids = inputs["input_ids"][0].long().tolist()
        if not ids:
            return ids, None
        key = (teacher, task, json.dumps({name: value.tolist() for name, value in inputs.items()}))
        if key not in outputs:
            with torch.no_grad():
                outputs[key] = model(**inputs, output_hidden_states=True)
        return ids, outputs[key]

    return run


def by_positions(dump: Dump) -> dict[int, Recorded]:
    """Each row that has a recorded position, through `Dump.positions()`."""
    return {
        row: Recorded(
            torch.tensor(part["ids"].to_list()),
            torch.tensor(part["log_probs"].to_list(), dtype=torch.float64),
            torch.tensor(part["tail"].to_list(), dtype=torch.float64),
            part["label"].to_list(),
        )
        for (row,), part in dump.positions().collect().partition_by("row", as_dict=True, maintain_order=True).items()
    }


def by_row_groups(dump: Dump) -> dict[int, Recorded]:
    """The same as a trainer reads it: flat row groups and the codec's decode."""
    codec = dump.distribution
    names = [column.name for column in codec.columns]
    found = {}
    for index in range(dump.manifest.shards):
        shard = open_shard(shard_path(dump.path, index), dump.receipts[index])
        for number in range(shard.num_row_groups):
            group = read_row_group(dump.manifest, shard, number, names)
            targets = codec.decode({n: torch.from_numpy(v.copy()) for n, v in to_flat(group.columns).items()})
            if isinstance(targets, DenseTargets):
                log_probs = targets.logits_NV.double().log_softmax(-1)
                ids = torch.arange(log_probs.shape[1]).expand_as(log_probs)
                tail = torch.full((len(ids),), -torch.inf, dtype=torch.float64)
            else:
                assert isinstance(targets, SparseTargets)
                log_probs, order = targets.log_probs_NK.double().sort(dim=-1, descending=True, stable=True)
                ids, tail = targets.ids_NK.gather(1, order), targets.tail_N.double()
            for at, row in enumerate(group.rows.tolist()):
                part = slice(group.position_offsets[at], group.position_offsets[at + 1])
                labels = [None if label == -100 else label for label in group.labels[part].tolist()]
                if len(ids[part]):
                    found[row] = Recorded(ids[part], log_probs[part], tail[part], labels)
    return found


def input_ids_of(dump: Dump) -> dict[int, list[int]]:
    return dict(dump.scan().select("row", "input_ids").collect().iter_rows())


def assert_same(recorded: Recorded, logits_PV: Tensor, dense: bool) -> None:
    """Ids equal, ties aside; log-probabilities within the codec's error; the tail against float64."""
    exact = logits_PV.double().log_softmax(-1)
    k = recorded.ids.shape[1]
    assert recorded.ids.shape[0] == exact.shape[0]
    at_ids = exact.gather(-1, recorded.ids)
    if dense:
        assert torch.equal(recorded.ids, torch.arange(exact.shape[1]).expand_as(exact))
        assert (recorded.log_probs - at_ids).abs().max() < NOISE
        assert (recorded.tail == -torch.inf).all()
        return
    ranked, order = exact.sort(-1, descending=True)
    # The codec's steps are even in p ** 0.4; two ids less than two steps apart may change places.
    power = (0.4 * ranked).exp()
    wide = torch.nn.functional.pad(power[:, :-1] - power[:, 1:] > 2.5 / LEVELS + 1e-5, (1, 1), value=True)
    untied = (wide[:, :-1] & wide[:, 1:])[:, :k]
    assert untied.float().mean() > 0.5
    assert torch.equal(recorded.ids[untied], order[:, :k][untied])
    assert ((at_ids - ranked[:, :k]).abs()[untied] < NOISE).all()
    assert ((0.4 * recorded.log_probs).exp() - (0.4 * at_ids).exp()).abs().max() < 1.5 / LEVELS + NOISE
    outside = exact.scatter(-1, recorded.ids, -torch.inf).logsumexp(-1)
    if k == exact.shape[1]:
        assert (recorded.tail == -torch.inf).all()
    else:
        assert ((0.4 * recorded.tail).exp() - (0.4 * outside).exp()).abs().max() < 0.5 / LEVELS + NOISE


def check_language_model(
    make_dump: Any, reference: Any, teacher: Path, task: str, rows: list[str], **request: Any
) -> None:
    """Dump `rows` with every budget and compare each row, both ways of reading it back."""
    for budget in BUDGETS:
        dump = Dump(
            make_dump(
                task,
                teacher=teacher,
                data=[{"text": row} for row in rows],
                batch_tokens=budget,
                shard_rows=9,
                max_length=MAX_LENGTH,
                **request,
            )
        )
        stored, where = input_ids_of(dump), {}
        if dump.manifest.layout.name == "listed":
            where = dict(dump.scan().select("row", "positions").collect().iter_rows())
        assert sorted(stored) == list(range(len(rows)))
        for found in (by_positions(dump), by_row_groups(dump)):
            for row, text in enumerate(rows):
                original, _ = reference(teacher, task, text)
                ids, output = reference(teacher, task, torch.tensor(stored[row], dtype=torch.long))
                if task == "causal-lm":
                    assert ids == original
                    positions, gold = list(range(len(ids) - 1)), original[1:]
                else:
                    positions, gold = where[row], [original[at] for at in where[row]]
                if positions:
                    assert found[row].labels == gold
                    assert_same(found[row], output.logits[0, positions], dense=False)
                else:
                    assert row not in found


CAUSAL = {
    "llama with a padded head": ("llama", {"vocab_size": 384}),
    "llama with tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", {}),
    "gemma2 with capped logits": ("gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8}),
    "cohere with scaled logits": ("cohere", {"logit_scale": 0.25}),
    "granite with divided logits": ("granite", {"logits_scaling": 4.0}),
    "phi with a biased head": ("phi", {}),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_lm(name: str, make_teacher: Any, make_dump: Any, reference: Any, mixed: list[str]) -> None:
    kind, config = CAUSAL[name]
    teacher = make_teacher("causal-lm", kind, **config)
    if "biased" in name:
        give_the_head_a_bias(teacher)
    check_language_model(make_dump, reference, teacher, "causal-lm", mixed, top_k=7, levels=LEVELS)


def give_the_head_a_bias(teacher: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher)
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    model.save_pretrained(teacher)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_head_of_known_kinds_is_held_back(name: str, make_teacher: Any, tmp_path: Path) -> None:
    """Else the full [tokens, vocabulary] tensor is in memory after all."""
    kind, config = CAUSAL[name]
    teacher = loaded(make_teacher("causal-lm", kind, **config), tmp_path)
    assert teacher.head is not None
    assert teacher.head.sliced
    ids = torch.arange(12).reshape(2, 6)
    output, logits_of = teacher.head.run({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert output.logits.numel() == 0
    assert logits_of(torch.arange(12)).shape == (12, teacher.vocabulary)


def loaded(folder: Path, tmp_path: Path) -> Any:
    task = task_named("causal-lm")
    request = Request(str(folder), task.name, (), tmp_path, device="cpu")
    return load_teacher(describe(request, task))


def test_an_unknown_step_after_the_head_is_noticed(
    make_teacher: Any, make_dump: Any, reference: Any, mixed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where applying the head afterwards does not give the model's logits, the model's own are used."""
    monkeypatch.setattr(LogitStep, "of", lambda config: LogitStep())
    teacher = make_teacher("causal-lm", "cohere", logit_scale=0.25)
    assert not loaded(teacher, tmp_path).head.sliced
    check_language_model(make_dump, reference, teacher, "causal-lm", mixed, top_k=7, levels=LEVELS)


@pytest.mark.parametrize("k", [1, 320])
def test_fewest_and_all_ids(k: int, make_teacher: Any, make_dump: Any, reference: Any, mixed: list[str]) -> None:
    check_language_model(
        make_dump, reference, make_teacher("causal-lm"), "causal-lm", mixed[-5:], top_k=k, levels=LEVELS
    )


def test_slices_of_positions_join_in_order(
    make_teacher: Any, make_dump: Any, reference: Any, mixed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "SLICE_VALUES", {"cpu": 1000})
    monkeypatch.setattr(devices, "FEWEST_POSITIONS", 3)  # of 320 entries, so that slices have three
    check_language_model(make_dump, reference, make_teacher("causal-lm"), "causal-lm", mixed, top_k=7, levels=LEVELS)


@pytest.mark.parametrize(
    "rows", [["fox jumps over"] * 6, ["the quick brown fox"], ["fox"]], ids=["equal", "one", "short"]
)
def test_causal_lm_without_padding(rows: list[str], make_teacher: Any, make_dump: Any, reference: Any) -> None:
    check_language_model(make_dump, reference, make_teacher("causal-lm"), "causal-lm", rows, top_k=7, levels=LEVELS)


@pytest.mark.parametrize("positions", ["masked", "all"])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_masked_lm(
    kind: str, positions: str, make_teacher: Any, make_dump: Any, reference: Any, mixed: list[str]
) -> None:
    teacher = make_teacher("masked-lm", kind)
    check_language_model(make_dump, reference, teacher, "masked-lm", mixed, top_k=7, levels=LEVELS, positions=positions)


CLASSIFIERS = {
    "bert": ("bert", {}),
    "llama without a pad token": ("llama", {}),
    "gpt2 without a pad token": ("gpt2", {}),
    "llama whose pad token the tokenizer does not know": ("llama", {"pad_token_id": 250}),
    "llama whose pad token is -1": ("llama", {"pad_token_id": -1}),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_sequence_classification(
    name: str, make_teacher: Any, make_dump: Any, reference: Any, mixed: list[str]
) -> None:
    kind, config = CLASSIFIERS[name]
    teacher = make_teacher("sequence-classification", kind, **config)
    rows = [{"text": text, "label": ["neutral", None, 2, "0"][row % 4]} for row, text in enumerate(mixed) if text]
    for budget in BUDGETS:
        dump = Dump(make_dump(teacher=teacher, data=rows, batch_tokens=budget, shard_rows=9, max_length=MAX_LENGTH))
        stored = input_ids_of(dump)
        for found in (by_positions(dump), by_row_groups(dump)):
            assert sorted(found) == list(range(len(rows)))
            for row, recorded in found.items():
                ids, output = reference(teacher, "sequence-classification", rows[row]["text"])
                assert stored[row] == ids
                assert_same(recorded, output.logits, dense=True)
                assert recorded.labels == [[1, None, 2, 0][row % 4]] or not mixed[row]


@pytest.mark.parametrize("kind", ["bert", "distilbert", "llama", "gpt2"])
def test_pairs(kind: str, make_teacher: Any, make_dump: Any, reference: Any, texts: list[str]) -> None:
    """Token types reach the teachers that know of them, and no others: GPT-2 would add them to its embeddings."""
    teacher = make_teacher("sequence-classification", kind)
    if kind in ("llama", "gpt2"):
        tokenizer = AutoTokenizer.from_pretrained(teacher)
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.save_pretrained(teacher)
    rows = [{"text": text, "pair": other} for text, other in zip(texts[:9], texts[9:18], strict=True)]
    dump = Dump(make_dump(teacher=teacher, data=rows, pair_column="pair", batch_tokens=150, max_length=MAX_LENGTH))
    stored = dict(dump.scan().select("row", pl.struct("input_ids", "token_type_ids")).collect().iter_rows())
    for row, recorded in by_positions(dump).items():
        options = {"return_token_type_ids": True} if kind == "bert" else {}
        ids, output = reference(teacher, "sequence-classification", rows[row]["text"], rows[row]["pair"], **options)
        assert stored[row]["input_ids"] == ids
        assert_same(recorded, output.logits, dense=True)
        if kind == "bert":
            second = ids.index(3) + 1
            assert stored[row]["token_type_ids"] == [0] * second + [1] * (len(ids) - second)


@pytest.mark.parametrize("positions", ["first-subtoken", "all"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_token_classification(
    positions: str, top_k: int | None, make_teacher: Any, make_dump: Any, reference: Any, toy_rows: Any
) -> None:
    teacher = make_teacher("token-classification")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    # Words that the tokenizer has to cut into pieces, one row that is cut short, one without any word.
    rows = [*toy_rows("token-classification", 12), {"tokens": ["foxjumps", "dog", "lazydog"], "tags": ["O", None, 2]}]
    rows += [{"tokens": ["wizards"] * 40, "tags": ["I-X"] * 40}, {"tokens": [], "tags": []}]
    names = ["O", "B-X", "I-X"]
    for budget in BUDGETS:
        dump = Dump(
            make_dump(
                "token-classification",
                teacher=teacher,
                data=rows,
                batch_tokens=budget,
                positions=positions,
                top_k=top_k,
                levels=LEVELS if top_k else None,
                max_length=MAX_LENGTH,
            )
        )
        where = dict(dump.scan().select("row", "positions").collect().iter_rows())
        for found in (by_positions(dump), by_row_groups(dump)):
            assert sorted(found) == list(range(len(rows) - 1))
            for row, recorded in found.items():
                words = rows[row]["tokens"]
                _, output = reference(teacher, "token-classification", words, is_split_into_words=True)
                owners = tokenizer(words, is_split_into_words=True, truncation=True, max_length=MAX_LENGTH).word_ids()
                expected = [at for at, word in enumerate(owners) if word is not None]
                if positions == "first-subtoken":
                    expected = [owners.index(word) for word in sorted({owners[at] for at in expected})]
                assert where[row] == expected
                assert_same(recorded, output.logits[0, expected], dense=top_k is None)
                tags = rows[row]["tags"] or [None] * len(words)
                gold = [
                    names[tags[owners[at]]] if isinstance(tags[owners[at]], int) else tags[owners[at]]
                    for at in expected
                ]
                assert recorded.labels == [None if tag is None else names.index(tag) for tag in gold]


@pytest.mark.parametrize(
    ("task", "kind"), [("encoder", "bert"), ("encoder", "distilbert"), ("causal-lm", "llama"), ("causal-lm", "gpt2")]
)
def test_hidden_states(
    task: str, kind: str, make_teacher: Any, make_dump: Any, reference: Any, mixed: list[str]
) -> None:
    teacher = make_teacher(task, kind)
    for budget in BUDGETS:
        dump = Dump(
            make_dump(
                task,
                teacher=teacher,
                data=[{"text": text} for text in mixed],
                hidden="all",
                pooling="none",
                batch_tokens=budget,
                shard_rows=9,
                max_length=MAX_LENGTH,
            )
        )
        assert list(dump.manifest.vectors) == ["hidden.0", "hidden.1", "hidden.2"]
        for layer, (name, codec) in enumerate(dump.manifest.vectors.items()):
            through_polars = {
                row: part for (row,), part in dump.vectors(name).collect().partition_by("row", as_dict=True).items()
            }
            flat = {}
            for index in range(dump.manifest.shards):
                shard = open_shard(shard_path(dump.path, index), dump.receipts[index])
                for number in range(shard.num_row_groups):
                    group = read_row_group(dump.manifest, shard, number, [name])
                    values = codec.decode({name: torch.from_numpy(np.array(group.columns[name]))})
                    for at, row in enumerate(group.rows.tolist()):
                        flat[row] = values[group.token_offsets[at] : group.token_offsets[at + 1]]
            for row, text in enumerate(mixed):
                ids, output = reference(teacher, task, text)
                if not ids:
                    assert row not in through_polars
                    assert len(flat[row]) == 0
                    continue
                exact = output.hidden_states[layer][0]
                assert ((flat[row] - exact).abs() <= exact.abs() * 2**-11 + NOISE).all()
                assert through_polars[row]["position"].to_list() == list(range(len(ids)))
                assert through_polars[row]["vector"].to_list() == flat[row].tolist()


def test_position_t_predicts_token_t_plus_1(tmp_path: Path, make_dump: Any) -> None:
    """On a model that has learnt a cycle by heart, the first choice at each position is the token that follows."""
    words = ["zero", "one", "two", "three", "four", "five", "six"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="zero"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    cycles = (torch.arange(7)[:, None] + torch.arange(20)) % 7
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=cycles, labels=cycles).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "teacher")
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "teacher")
    rows = [" ".join(words[(start + at) % 7] for at in range(length)) for start, length in enumerate([9, 2, 20, 1, 13])]
    positions = (
        Dump(make_dump("causal-lm", teacher=tmp_path / "teacher", data=rows, top_k=3, max_length=32))
        .positions()
        .collect()
    )
    assert len(positions) == 8 + 1 + 19 + 0 + 12
    assert positions["log_probs"].list.first().min() > np.log(0.9)
    assert (positions["ids"].list.first() == (positions["token_id"] + 1) % 7).all()
    assert (positions["ids"].list.first() == positions["label"]).all()


def test_masking_depends_on_seed_and_row_alone(make_teacher: Any, make_dump: Any, texts: list[str]) -> None:
    teacher, rows = make_teacher("masked-lm"), [{"text": text} for text in texts[:40]]

    def inputs(**options: Any) -> list[Any]:
        dump = Dump(make_dump("masked-lm", teacher=teacher, data=rows, top_k=1, **options))
        return dump.scan().select("row", "input_ids", "positions", "labels").sort("row").collect().rows()

    first = inputs(shard_rows=7, batch_tokens=50)
    assert first == inputs(shard_rows=64, batch_tokens=5000)
    assert first[:25] == inputs(limit=25)
    assert first != inputs(seed=1)


def test_masking_is_berts(tiny_tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    """15% of the ordinary tokens and at least one; of these 80% masked, 10% random, 10% as they were."""
    examples = [Example(text) for text in texts]
    masked = kept = total = 0
    for seed in range(12):
        how = Tokenizing(tiny_tokenizer, 512, positions="masked", seed=seed)
        for example, row in zip(examples, task_named("masked-lm").tokenize(how, examples, 0), strict=True):
            original = np.array(tiny_tokenizer(example.text)["input_ids"])
            assert len(row.positions) == max(1, round(0.15 * (len(original) - 2)))
            assert row.positions.min() > 0
            assert row.positions.max() < len(original) - 1
            assert (np.diff(row.positions) > 0).all()
            assert (row.labels == original[row.positions]).all()
            untouched = np.setdiff1d(np.arange(len(original)), row.positions)
            assert (row.input_ids[untouched] == original[untouched]).all()
            now = row.input_ids[row.positions]
            masked += int((now == tiny_tokenizer.mask_token_id).sum())
            kept += int((now == row.labels).sum())
            total += len(now)
    for count, share in ((masked, 0.8), (kept, 0.1)):
        # Four standard errors, and what a random token adds by being the mask or the same one.
        assert abs(count / total - share) < 4 * (share * (1 - share) / total) ** 0.5 + 0.1 / 100


def test_dense_over_a_vocabulary(make_teacher: Any, make_dump: Any, reference: Any, texts: list[str]) -> None:
    teacher = make_teacher("causal-lm")
    dump = Dump(make_dump("causal-lm", teacher=teacher, data=texts[:3], dense=True))
    assert isinstance(dump.distribution, Dense)
    for row, recorded in by_positions(dump).items():
        ids, output = reference(teacher, "causal-lm", torch.tensor(input_ids_of(dump)[row]))
        assert_same(recorded, output.logits[0, : len(ids) - 1], dense=True)
