"""Make what the experiments on universal students read: general text without labels, and the tasks' own rows.

    python recipes/universal/texts.py --data DIR --out out/universal/data [--more FILE.jsonl ...]

DIR holds the folders agnews, lm_gutenberg, mrpc, ner_wnut17, rte, squad, sst2, stsb and trec, each with train.parquet.
The general text, `general.parquet`, is their training texts without labels and those of the files of --more: every text
once, in an order drawn from the seed. Each task gets a folder with `train.parquet` and `test.parquet`; rows of large
tasks are drawn, so that a student is fine-tuned on all of them within minutes.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import polars as pl


class Task(NamedTuple):
    """The rows of a task: its folder, how many of train and test are drawn (None for all), and the test rows' file."""

    folder: str
    train: int | None = None
    test: int | None = None
    held_out: str = "test"


TASKS = {
    "sst2": Task("sst2", train=5000),
    "trec": Task("trec"),
    "mrpc": Task("mrpc"),
    "rte": Task("rte", held_out="dev"),
    "agnews": Task("agnews", train=1000, test=2000),
    "wnut17": Task("ner_wnut17"),
    "squad": Task("squad", train=2000, test=600, held_out="dev"),
    "stsb": Task("stsb"),
}
SOURCES = ("agnews", "lm_gutenberg", "mrpc", "ner_wnut17", "rte", "squad", "sst2", "stsb", "trec")
TEXTS = ("text", "text_a", "text_b", "context", "question")
# Most rows of SST-2 are parts of others, and one or two words teach little.
LEAST_WORDS = 5


def texts_of(rows: pl.DataFrame) -> pl.Series:
    """Return all texts of some rows, whatever their columns; tagged words are joined."""
    found = [rows[name].alias("text") for name in TEXTS if name in rows.columns]
    if "tokens" in rows.columns:
        found.append(rows["tokens"].list.join(" ").alias("text"))
    return pl.concat(found)


def general(rows: list[pl.DataFrame], seed: int) -> pl.DataFrame:
    """Return each text of some rows once, shuffled, without the shortest."""
    texts = pl.concat([texts_of(each) for each in rows]).str.strip_chars().unique(maintain_order=True)
    kept = texts.filter(texts.str.split(" ").list.len() >= LEAST_WORDS)
    return kept.shuffle(seed).to_frame()


def drawn(rows: pl.DataFrame, count: int | None, seed: int) -> pl.DataFrame:
    """Return `count` rows, drawn from the seed, in the order of the file; all rows if there are no more."""
    if count is None or count >= rows.height:
        return rows
    return rows.with_row_index("number").sample(count, seed=seed).sort("number").drop("number")


def main() -> int:
    """Write all files."""
    parser = argparse.ArgumentParser(description="Make general text without labels, and the rows of eight tasks.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, each with train.parquet")
    parser.add_argument("--out", type=Path, required=True, help="folder for general.parquet and a folder a task")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help=".jsonl files with more texts")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order and of drawing rows (default 0)")
    args = parser.parse_args()
    needed = [args.data / name / "train.parquet" for name in SOURCES] + args.more
    needed += [args.data / task.folder / f"{task.held_out}.parquet" for task in TASKS.values()]
    if absent := [str(file) for file in needed if not file.is_file()]:
        print(f"texts: there is no {', '.join(absent)}; name the folder that holds them.", file=sys.stderr)
        return 1
    rows = [pl.read_parquet(args.data / name / "train.parquet") for name in SOURCES]
    rows += [pl.read_ndjson(file) for file in args.more]
    texts = general(rows, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    texts.write_parquet(args.out / "general.parquet")
    words = texts["text"].str.split(" ").list.len().sum()
    print(f"{'general':<10}{texts.height:>8,} texts, {words:,} words")
    for name, task in TASKS.items():
        (args.out / name).mkdir(exist_ok=True)
        for split, file, count in (("train", "train", task.train), ("test", task.held_out, task.test)):
            part = drawn(pl.read_parquet(args.data / task.folder / f"{file}.parquet"), count, args.seed)
            part.write_parquet(args.out / name / f"{split}.parquet")
            print(f"{name:<10}{part.height:>8,} rows of {split}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
