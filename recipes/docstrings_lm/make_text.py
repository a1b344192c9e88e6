"""Make a small language modelling task, and its tokenizer, from docstrings, which every machine with Lectern has.

The text is the docstrings of installed packages, in pieces of at most 500 characters cut at line ends. The pieces of a
source file are either all in the validation split or all in the training split, and a piece that occurs twice is kept
once. Packages are parsed, never imported. The tokenizer is a byte-level BPE trained on the training split.

    python recipes/docstrings_lm/make_text.py --out out/docstrings_lm/data
"""

import argparse
import ast
import importlib.util
import json
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

PACKAGES = ("matplotlib", "networkx", "numpy", "polars", "scipy", "sklearn", "sympy", "torch")
PIECE_CHARACTERS, MIN_CHARACTERS = 500, 80
END_OF_TEXT = "<|endoftext|>"


def docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a file's module, classes and functions; none if the file cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes in the packages
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def pieces(docstring: str) -> Iterator[str]:
    """Yield a docstring in pieces, cut at line ends."""
    piece = ""
    for line in docstring.splitlines(keepends=True):
        if piece and len(piece) + len(line) > PIECE_CHARACTERS:
            yield piece
            piece = ""
        piece += line
    yield piece


def read_texts(valid_share: float, seed: int) -> dict[str, list[str]]:
    """Return the pieces of both splits, without those that are too short, each in an order drawn from the seed."""
    files = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"the package {package!r} is not installed; install lectern[demo]")
        root = Path(spec.submodule_search_locations[0])
        files += sorted(path for path in root.rglob("*.py") if "tests" not in path.relative_to(root).parts)
    random.Random(seed).shuffle(files)
    splits: dict[str, list[str]] = {"valid": [], "train": []}
    seen: set[str] = set()
    for number, file in enumerate(files):
        split = splits["valid" if number < valid_share * len(files) else "train"]
        for piece in (piece.strip() for text in docstrings(file) for piece in pieces(text)):
            if len(piece) >= MIN_CHARACTERS and piece not in seen:
                seen.add(piece)
                split.append(piece)
    for texts in splits.values():
        random.Random(seed).shuffle(texts)
    return splits


def train_tokenizer(texts: list[str], entries: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with so many entries, including one token for the end of a text and for padding."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=entries, special_tokens=[END_OF_TEXT], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a text and a tokenizer from the docstrings of eight packages.")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.jsonl, valid.jsonl and tokenizer/")
    parser.add_argument("--train", type=int, default=6000, help="pieces to train on (default 6000)")
    parser.add_argument("--valid", type=int, default=600, help="pieces to score on (default 600)")
    parser.add_argument("--vocabulary", type=int, default=8192, help="entries of the tokenizer (default 8192)")
    parser.add_argument("--seed", type=int, default=0, help="seed for drawing files and pieces (default 0)")
    args = parser.parse_args()
    try:
        splits = read_texts(valid_share=0.1, seed=args.seed)
    except ModuleNotFoundError as error:
        print(f"make_text: {error}", file=sys.stderr)
        return 1
    for name, wanted in {"train": args.train, "valid": args.valid}.items():
        if len(splits[name]) < wanted:
            print(f"make_text: --{name} is {wanted}, but there are {len(splits[name])} pieces", file=sys.stderr)
            return 1
        splits[name] = splits[name][:wanted]
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(splits["train"], args.vocabulary)
    tokenizer.save_pretrained(args.out / "tokenizer")
    for name, texts in splits.items():
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        (args.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        tokens = sum(len(ids) for ids in tokenizer(texts)["input_ids"])
        print(f"{name:<8}{len(texts):>8,} pieces{tokens:>10,} tokens")
    print(f"tokenizer of {len(tokenizer):,} entries")
    return 0


if __name__ == "__main__":
    sys.exit(main())
