"""Split SST-2 for distillation: a few labelled rows, the rest as unlabeled transfer rows, dev and test as they are.

    python recipes/sst2/split.py --data DIR --out out/sst2/data

DIR holds train.parquet, dev.parquet and test.parquet with the columns `text` and `label` (0 negative, 1 positive).
"""

import argparse
import sys
from pathlib import Path

import polars as pl

FILES = ("train", "dev", "test")


def main() -> int:
    parser = argparse.ArgumentParser(description="Split SST-2 into labelled and unlabeled (transfer) rows.")
    parser.add_argument("--data", type=Path, required=True, help="folder with train, dev and test .parquet")
    parser.add_argument("--out", type=Path, required=True, help="folder for labelled, transfer, dev and test .parquet")
    parser.add_argument("--labelled", type=int, default=10_000, help="rows that keep their label (default 10000)")
    parser.add_argument("--seed", type=int, default=0, help="draws the labelled rows (default 0)")
    args = parser.parse_args()
    if absent := [f"{name}.parquet" for name in FILES if not (args.data / f"{name}.parquet").is_file()]:
        print(f"split: {args.data} has no {', '.join(absent)}; name the folder that holds SST-2.", file=sys.stderr)
        return 1
    train, dev, test = (pl.read_parquet(args.data / f"{name}.parquet", columns=["text", "label"]) for name in FILES)
    shuffled = train.sample(fraction=1.0, shuffle=True, seed=args.seed)
    splits = {
        "labelled": shuffled.head(args.labelled),
        "transfer": shuffled.slice(args.labelled).drop("label"),
        "dev": dev,
        "test": test,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        rows.write_parquet(args.out / f"{name}.parquet")
        print(f"{name:<10}{rows.height:>8,} rows, columns {', '.join(rows.columns)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
