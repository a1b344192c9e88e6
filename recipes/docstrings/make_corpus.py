"""Make a text classification task from docstrings, which every machine with Lectern has.

A text is the prose at the start of a docstring; its label is the package that it comes from. The ten packages are
installed with `lectern[demo]`, so the task needs no download. It is not trivial: the names of all ten packages are
masked in every text, so that only the content distinguishes a graph from a plot or a tensor.

No text is in two splits: the texts of a source file are either all in the test split or all in the others, a text that
occurs twice is kept once, and one that occurs in two packages is dropped. Packages are parsed, never imported. The
result depends only on the seed and the installed versions.

    python recipes/docstrings/make_corpus.py --out out/demo/data
"""

import argparse
import ast
import importlib.util
import inspect
import json
import random
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Each package with a pattern of its names. NumPy and SciPy are not labels: they document the same functions.
PACKAGES = {
    "fontTools": "font-?tools",
    "huggingface_hub": "hugging[ -]?face",
    "matplotlib": "matplotlib|mpl_|pyplot",
    "networkx": "networkx",
    "polars": "polars",
    "pygments": "pygments",
    "sklearn": "sklearn|scikit",
    "sympy": "sympy",
    "torch": "torch",
    "transformers": "transformers|🤗",
}
PLACEHOLDER = "library"
# A name is masked with the whole word around it (PyTorch, TorchScript, numpydoc), short aliases only as whole words.
NAMES = re.compile(rf"\w*(?:{'|'.join(PACKAGES.values())}|numpy|scipy)\w*(?:-learn)?", re.IGNORECASE)
ALIASES = re.compile(r"\b(?:np|plt|mpl|nx|pl|sp|ft|hf|HF|hub|Hub|Hf[A-Z]\w*)\b")

MIN_WORDS, MAX_WORDS = 10, 60
# The test split takes at most 8 texts of a file, for variety, and no file of more than 25, because the rest is dropped.
MAX_TEST_TEXTS_PER_FILE, MAX_TEST_FILE_TEXTS = 8, 25
READ_MARGIN = 1.1  # read more texts than requested, because duplicates and the rest of test files are dropped

SECTION = re.compile(
    r"(?:\W*(?:other |keyword )?(?:param(?:eter)?s?|arg(?:ument)?s?|inputs?|outputs?|returns?|yields?|raises?|warns?"
    r"|notes?|see also|examples?|references?|attributes?|methods?|usage|tips?|shape|warnings?)\W*(?:\n|$))"
    r"|:(?:param|type|return|rtype|raises|copyright)|\w+ \(.*\):|>>>|```|\[\d+\]|\|",
    re.IGNORECASE,
)
UNDERLINE = re.compile(r"^[=~^*#+-]{3,}$", re.MULTILINE)
MARKUP = re.compile(r":[a-z:]+:(?=`)|[`*~\\]|(?<=\w)_(?=\s)|\[(?=`)|(?<=`)\]|<[^>\s]*>")


class CorpusError(Exception):
    """The corpus cannot be made; the message gives the reason and the solution."""


@dataclass(frozen=True)
class Text:
    text: str
    label: str
    file: str

    @property
    def key(self) -> str:
        """The key by which texts are duplicates: their words in lower case, without punctuation."""
        return " ".join(re.findall(r"[a-z]+", self.text.lower()))


def prose(docstring: str) -> str:
    """Return the paragraphs before the first section, doctest or table, at most 60 words, without markup; package names
    are masked."""
    words: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        paragraph = UNDERLINE.sub("", paragraph).strip("\n")
        if SECTION.match(paragraph) or len(words) >= MAX_WORDS:
            break
        if paragraph.startswith((" ", "\t", "..", "- ", "* ")):  # a literal block, a directive or its body, a list
            continue
        before_lists = re.split(r"\n\s*(?:\.\.|>>>|[-*] |:param|Args?:|Returns:|Example)", paragraph)[0]
        words += ALIASES.sub(PLACEHOLDER, NAMES.sub(PLACEHOLDER, MARKUP.sub("", before_lists))).split()
    return " ".join(words[:MAX_WORDS])


def docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a file's module, classes and functions; none if the file cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes in the packages
            nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    except (SyntaxError, ValueError):
        return
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def read_package(package: str, enough: int, seed: int) -> list[Text]:
    """Return at least `enough` texts of many files (or all texts), in an order of files drawn from the seed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(
            f"the package {package!r} is not installed; install Lectern with the packages of the demo: lectern[demo]"
        )
    root = Path(spec.submodule_search_locations[0])
    files = sorted(p.relative_to(root) for p in root.rglob("*.py") if "tests" not in p.relative_to(root).parts)
    random.Random(f"{seed} files {package}").shuffle(files)
    texts: list[Text] = []
    while files and enough > 0:
        file = files.pop()
        found = [text for text in map(prose, docstrings(root / file)) if len(text.split()) >= MIN_WORDS]
        texts += [Text(text, package, f"{package}/{file.as_posix()}") for text in found]
        enough -= min(len(found), MAX_TEST_TEXTS_PER_FILE)  # so that one large file is never enough
    return texts


def without_duplicates(texts: list[Text]) -> list[Text]:
    """Return each text once, without texts that occur in several packages."""
    first: dict[str, Text] = {}
    shared = {t.key for t in texts if first.setdefault(t.key, t).label != t.label}
    return [t for t in first.values() if t.key not in shared]


def make_splits(labelled: int, unlabeled: int, test: int, seed: int) -> dict[str, list[Text]]:
    """Return the three splits, with equally many texts of each package (in `unlabeled`, as far as there are enough)."""
    for name, size in {"--labelled": labelled, "--unlabeled": unlabeled, "--test": test}.items():
        if size < 0 or size % len(PACKAGES):
            raise CorpusError(f"{name} is {size}; choose a multiple of {len(PACKAGES)}, the number of packages")
    labelled_share, test_share = labelled // len(PACKAGES), test // len(PACKAGES)
    enough = int(READ_MARGIN * (labelled + unlabeled + test) / len(PACKAGES)) + 2 * MAX_TEST_FILE_TEXTS
    corpus = without_duplicates([text for package in PACKAGES for text in read_package(package, enough, seed)])

    splits: dict[str, list[Text]] = {"labelled": [], "unlabeled": [], "test": []}
    reserve: list[tuple[int, Text]] = []
    for package in PACKAGES:
        texts = [text for text in corpus if text.label == package]
        test_texts: list[Text] = []
        test_files: set[str] = set()
        for file, count in Counter(text.file for text in texts).items():
            if len(test_texts) < test_share and count <= MAX_TEST_FILE_TEXTS:
                test_files.add(file)
                test_texts += [text for text in texts if text.file == file][:MAX_TEST_TEXTS_PER_FILE]
        rest = [text for text in texts if text.file not in test_files]
        if len(test_texts) < test_share or len(rest) < labelled_share:
            found = f"{len(rest)} of {labelled_share} labelled and {len(test_texts)} of {test_share} test texts"
            raise CorpusError(f"{package} yields {found}; ask for smaller --labelled or --test")
        random.Random(f"{seed} texts {package}").shuffle(rest)
        splits["test"] += test_texts[:test_share]
        splits["labelled"] += rest[:labelled_share]
        reserve += enumerate(rest[labelled_share:])
    if len(reserve) < unlabeled:
        raise CorpusError(f"--unlabeled is {unlabeled}, but only {len(reserve)} texts are left; ask for fewer")
    # One text of each package in turn, so that the others fill up evenly for a package without enough texts.
    splits["unlabeled"] = [text for _, text in sorted(reserve, key=lambda turn: turn[0])[:unlabeled]]
    for name, texts in splits.items():
        random.Random(f"{seed} order {name}").shuffle(texts)
    return splits


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    """Write to a temporary name, then rename, so that the file is complete or absent."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a classification corpus from the docstrings of ten packages.")
    parser.add_argument("--out", type=Path, required=True, help="folder for labelled, unlabeled and test .jsonl")
    parser.add_argument("--labelled", type=int, default=400, help="texts with a label, for the teacher (default 400)")
    parser.add_argument("--unlabeled", type=int, default=8000, help="texts without a label, to dump (default 8000)")
    parser.add_argument("--test", type=int, default=1000, help="labelled texts from other files (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed for drawing files and texts (default 0)")
    args = parser.parse_args()
    try:
        splits = make_splits(args.labelled, args.unlabeled, args.test, args.seed)
        args.out.mkdir(parents=True, exist_ok=True)
        for name, texts in splits.items():
            fields = ("text",) if name == "unlabeled" else ("text", "label")
            write_jsonl(args.out / f"{name}.jsonl", [{f: getattr(text, f) for f in fields} for text in texts])
    except (CorpusError, OSError) as error:
        print(f"make_corpus: {error}", file=sys.stderr)
        return 1
    print(f"{'package':<16}" + "".join(f"{name:>11}" for name in splits))
    for package in PACKAGES:
        print(f"{package:<16}" + "".join(f"{sum(t.label == package for t in texts):>11}" for texts in splits.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
