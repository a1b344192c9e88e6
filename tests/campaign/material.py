"""What is attacked: tiny teachers, corpora, dumps of all kinds of columns, recipes and students, made on the spot.

Everything lies in one folder and is named relative to it, so that a copy of the folder is a place of its own.
"""

import json
import random
from pathlib import Path
from typing import Any

TASKS = {
    "classifier": ("sequence-classification", "bert"),
    "tagger": ("token-classification", "bert"),
    "reader": ("question-answering", "bert"),
    "masked": ("masked-lm", "bert"),
    "lm": ("causal-lm", "llama"),
}
CORPORA = {"classifier": "rows.jsonl", "tagger": "words.jsonl", "reader": "questions.jsonl", "masked": "texts.txt"}
# Dump -> (teacher, options). Together they have every kind of column and of file.
DUMPS: dict[str, tuple[str, str]] = {
    "dense": ("classifier", "--hidden last --hidden-codec int8 --embeddings --teacher-weights all --importance 6"),
    "tags": ("tagger", "--hidden 1 --hidden-codec int4 --relations last --compression none"),
    "answers": ("reader", "--stride 4 --compression lz4"),
    "threshold": ("lm", "--threshold 0.02 --temperatures 2 --hidden last --hidden-rank 8 --hidden-codec int8"),
    "top-k": ("masked", "--top-k 6 --entropy --hidden all"),
    "exact": ("lm", "--exact"),
}
ROWS, SHARD_ROWS = 18, 7
PANGRAM = "the quick brown fox jumps over a lazy dog while seven wizards box some jugs of liquor naïve café"
WORDS = PANGRAM.split()
LABELS, TAGS = ("negative", "neutral", "positive"), ("O", "B-X", "I-X")
STUDENT = {
    "bilstm": 'kind = "bilstm"\nembedding_size = 8\nhidden_size = 8',
    "transformer": 'kind = "transformer"\nlayers = 1\nhidden_size = 16\nheads = 2',
}
EXTRACTED = STUDENT["transformer"] + '\nstart = {kind = "squeeze", by = "random"}'
SCORED = '[eval]\ndata = ["labelled.jsonl"]\ndump = "dense"\n'
TRAINING = "[training]\nbatch_size = 4\nlearning_rate = 1e-3\ndevice = 'cpu'\nsave_steps = 3\n"
KL, GOLD, HIDDEN = '{kind = "kl"}', '{kind = "gold"}', '{kind = "hidden", teacher_layer = 2, student_layer = -1}'
RECIPES = {
    "plain": f"""output = "out"
dump = "dense"
loss = [{KL}]
[student]
{STUDENT["bilstm"]}
{TRAINING}
max_steps = 12
""",
    "scored": f"""output = "out"
dump = "dense"
loss = [{KL}, {HIDDEN}]
[student]
{STUDENT["transformer"]}
{TRAINING}
max_steps = 10
[validation]
share = 0.3
every_steps = 2
{SCORED}""",
    "staged": f"""output = "out"
dump = "dense"
[student]
{STUDENT["transformer"]}
[[stage]]
name = "first"
loss = [{KL}]
[[stage]]
name = "second"
rows = "labelled"
unfreeze = "gradual"
loss = [{GOLD}]
{TRAINING}
max_steps = 5
""",
    "started": f"""output = "out"
dump = "dense"
[student]
{EXTRACTED}
[[stage]]
name = "first"
loss = [{KL}]
[[stage]]
name = "second"
loss = [{GOLD}]
unfreeze = "gradual"
{TRAINING}
max_steps = 5
""",
    "files": f"""output = "out"
loss = [{GOLD}]
[data]
task = "sequence-classification"
train = ["labelled.jsonl"]
tokenizer = "classifier"
max_length = 24
[student]
{STUDENT["bilstm"]}
{TRAINING}
max_steps = 4
""",
    "vocabulary": f"""output = "out"
dump = "threshold"
loss = [{KL}]
[student]
{STUDENT["transformer"]}
{TRAINING}
max_steps = 4
""",
}
SWEEP = 'output = "out"\nrecipe = "swept.toml"\nseeds = [0, 1]\njobs = 2\n'


def dump_command(name: str, out: str) -> list[str]:
    """Return the command that makes dump `name`."""
    teacher, options = DUMPS[name]
    words = (
        f"dump --teacher {teacher} --task {TASKS[teacher][0]} --data {CORPORA.get(teacher, 'texts.txt')} --out {out} "
    )
    limits = f"--max-length 24 --shard-rows {SHARD_ROWS} --batch-tokens 60 --device cpu "
    return (words + limits + options).split()


def make(folder: Path) -> None:
    """Fill a folder with teachers, corpora and recipes (not with dumps: commands make those)."""
    import torch
    import transformers
    from transformers import AutoConfig, PreTrainedTokenizerFast

    from shared.text.tasks import task_named

    folder.mkdir(parents=True)
    golden = Path(__file__).parents[1] / "golden"
    for name, (task, model_type) in TASKS.items():
        source = golden / ("first-masked" if model_type == "bert" else "first-top-k") / "tokenizer"
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
        entries: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        entries |= {"intermediate_size": 32, "max_position_embeddings": 32, "initializer_range": 0.25}
        entries |= {"vocab_size": -(-len(tokenizer) // 64) * 64, "bos_token_id": None, "eos_token_id": None}
        if names := {"classifier": LABELS, "tagger": TAGS}.get(name):
            entries |= {"id2label": dict(enumerate(names)), "label2id": {word: at for at, word in enumerate(names)}}
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, pad_token_id=tokenizer.pad_token_id, **entries)
        getattr(transformers, task_named(task).auto_class).from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, rows in corpora().items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    texts = [row["text"] for row in corpora()["rows.jsonl"]]
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    for name, recipe in RECIPES.items():
        (folder / f"{name}.toml").write_text(recipe, encoding="utf-8")
    (folder / "swept.toml").write_text(RECIPES["plain"] + SCORED, encoding="utf-8")
    (folder / "sweep.toml").write_text(SWEEP, encoding="utf-8")


def corpora() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each JSON file; some have no gold label."""
    choose = random.Random(0)
    rows, words, questions = [], [], []
    for number in range(ROWS):
        said = choose.choices(WORDS, k=choose.randint(1, 16))
        context = " ".join(choose.choices(WORDS, k=choose.randint(3, 30)))
        start = context.index(context.split()[1])
        rows.append({"text": " ".join(said), "label": choose.choice(LABELS) if number % 4 else None})
        words.append({"tokens": said, "tags": [choose.choice(TAGS) for _ in said] if number % 5 else None})
        answers = [context.split()[1]] if number % 3 else []
        questions.append(
            {
                "question": " ".join(said[:4]),
                "context": context,
                "answer_texts": answers,
                "answer_starts": [start] * len(answers),
            }
        )
    labelled = [row for row in rows if row["label"] is not None]
    return {"rows.jsonl": rows, "labelled.jsonl": labelled, "words.jsonl": words, "questions.jsonl": questions}
