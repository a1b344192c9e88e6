"""Split a task's data for distillation: a few labelled rows, the rest as unlabelled transfer rows, dev and test.

    python recipes/split.py --data DIR --out out/agnews/data --by label --each 500
    python recipes/split.py --data DIR --out out/sst2/data --share 0.1
    python recipes/split.py --data DIR --out out/ner/data --by lang --each 1000 --transfer 1000 --leave zh

DIR holds train, dev and test .parquet. The columns `label` and `tags` are gold labels, which are dropped from transfer
rows; all other columns are kept.
"""

import argparse
import sys
from pathlib import Path

import polars as pl

FILES = ("train", "dev", "test")
GOLD = ("label", "tags")
DRAWN = "drawn"


def split(train: pl.DataFrame, args: argparse.Namespace) -> dict[str, pl.DataFrame]:
    """Return the labelled rows and the transfer rows, both in the order of `train`."""
    shuffled = train.with_columns(pl.int_range(pl.len()).shuffle(seed=args.seed).alias(DRAWN))
    rank = pl.col(DRAWN).rank("ordinal")
    if args.each is not None:
        is_labelled = rank.over(args.by) <= args.each if args.by else rank <= args.each
        last = args.each + args.transfer if args.transfer is not None else train.height
        is_kept = rank.over(args.by) <= last if args.by else rank <= last
    else:
        is_labelled = rank <= round(args.share * train.height)
        is_kept = pl.lit(True)
    labelled = shuffled.filter(is_labelled).drop(DRAWN)
    transfer = shuffled.filter(is_kept & ~is_labelled).drop(DRAWN, *(name for name in GOLD if name in train.columns))
    return {"labelled": labelled, "transfer": transfer}


def main() -> int:
    parser = argparse.ArgumentParser(description="Split a task's data into labelled, transfer, dev and test rows.")
    parser.add_argument("--data", type=Path, required=True, help="folder with train, dev and test .parquet")
    parser.add_argument("--out", type=Path, required=True, help="folder for labelled, transfer, dev and test .parquet")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--each", type=int, help="rows that keep their label, for each value of --by")
    amount.add_argument("--share", type=float, help="share of all rows that keep their label")
    parser.add_argument("--by", help="column for whose values --each and --transfer count rows")
    parser.add_argument("--transfer", type=int, help="transfer rows for each value of --by (default: all others)")
    parser.add_argument("--leave", nargs="*", default=[], help="values of --by whose rows are left out of all files")
    parser.add_argument("--seed", type=int, default=0, help="seed for drawing the labelled rows (default 0)")
    args = parser.parse_args()
    if absent := [f"{name}.parquet" for name in FILES if not (args.data / f"{name}.parquet").is_file()]:
        print(f"split: {args.data} has no {', '.join(absent)}; name the folder that holds them.", file=sys.stderr)
        return 1
    train, dev, test = (pl.read_parquet(args.data / f"{name}.parquet") for name in FILES)
    if args.leave:
        train, dev, test = (rows.filter(~pl.col(args.by).is_in(args.leave)) for rows in (train, dev, test))
    splits = {**split(train, args), "dev": dev, "test": test}
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        rows.write_parquet(args.out / f"{name}.parquet")
        print(f"{name:<10}{rows.height:>8,} rows, columns {', '.join(rows.columns)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
