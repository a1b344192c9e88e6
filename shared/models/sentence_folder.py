"""Folders of the library sentence-transformers: what is beside a model that says how its embeddings are made.

    modules.json                       a transformer, its pooling and perhaps a normalisation, one after the other
    sentence_bert_config.json          the largest number of tokens of a text
    1_Pooling/config.json              which vectors of tokens become the embedding
    2_Normalize/                       only if embeddings are divided by their length
    config_sentence_transformers.json  prompts, and how two embeddings are compared

Only these files are read and written here, and never with that library.
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from shared.dump.facts import Pooling, PoolingMode
from shared.errors import LecternError
from shared.options import MOST
from shared.parsing import NotParsed, parse_json
from shared.storage.files import write_text_atomically

MODULES, PROMPTS, TRANSFORMER = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
POOLING, NORMALIZE = "1_Pooling", "2_Normalize"
# Our names of the modes -> those of the library.
_MODES: dict[PoolingMode, str] = {"mean": "mean", "cls": "cls", "last": "lasttoken", "max": "max"}
# In folders of any age, each mode has a key of its own.
_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_INSTEAD = "name a pooling (--pooling mean, for instance) to use the model without what this file says"


@dataclass(frozen=True)
class SentenceFolder:
    """What the files of such a folder say.

    Attributes:
        max_length: texts are cut to this many tokens; None if the files do not say.
        lowercases: whether texts are lowercased before they are tokenized.
    """

    pooling: Pooling
    max_length: int | None
    lowercases: bool

    def check_tokenizer(self, path: str, tokenizer: PreTrainedTokenizerBase, error: type[LecternError]) -> None:
        """Raise an `error` if texts would have to be lowercased for this tokenizer."""
        if self.lowercases and tokenizer("AEIOU")["input_ids"] != tokenizer("aeiou")["input_ids"]:
            raise error(
                f"{path}: its {TRANSFORMER} lowercases texts (do_lower_case), which its tokenizer does not do; "
                f"lowercase the texts yourself and set do_lower_case to false, or {_INSTEAD}."
            )


def read_sentence_folder(path: str, error: type[LecternError], revision: str | None = None) -> SentenceFolder | None:
    """Return what the files of a folder or a hub id say about embeddings; None if it has no modules.json.

    Raises:
        LecternError: an exception of type `error`, if a file is damaged or asks for what is not done here: modules
            other than a pooling and a normalisation, several poolings at once, or a prompt before every text.
    """
    modules = _read(path, MODULES, error, revision)
    if modules is None:
        return None
    where = f"{path}: {MODULES}"
    if not isinstance(modules, list) or not all(_is_module(module) for module in modules):
        raise error(f"{where} is not a list of modules, each with a 'type' and a 'path'; restore it, or delete it.")
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise error(
            f"{where} has the modules {', '.join(kinds) or 'none'}, but only a Transformer, a Pooling and perhaps a "
            f"Normalize can be recorded; {_INSTEAD}."
        )
    if modules[0]["path"]:
        raise error(f"{where}: the model is in its folder {modules[0]['path']!r}; give that folder and --pooling.")
    prompts = _table(path, PROMPTS, error, revision)
    default, texts = prompts.get("default_prompt_name"), prompts.get("prompts")
    if isinstance(default, str) and isinstance(texts, dict) and texts.get(default):
        raise error(
            f"{path}: {PROMPTS} puts the prompt {default!r} before every text, which is not done here; put it into "
            f"your texts and delete the key default_prompt_name, or {_INSTEAD}."
        )
    name = str(PurePosixPath(modules[1]["path"]) / "config.json")
    mode = _mode_of(_table(path, name, error, revision, is_needed=True), f"{path}: {name}", error)
    transformer = _table(path, TRANSFORMER, error, revision)
    length = transformer.get("max_seq_length")
    if length is not None and not (type(length) is int and 1 <= length <= MOST):
        raise error(f"{path}: {TRANSFORMER} has max_seq_length = {length!r:.40}; give a number of tokens, or none.")
    return SentenceFolder(
        Pooling(mode=mode, normalized=len(kinds) == 3), length, transformer.get("do_lower_case") is True
    )


def write_sentence_folder(folder: Path, pooling: Pooling, width: int, max_length: int) -> None:
    """Write the files beside a saved model, whose embeddings are `width` wide."""
    parts = [("Transformer", ""), ("Pooling", POOLING)] + [("Normalize", NORMALIZE)] * pooling.normalized
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(parts)
    ]
    keys = {key: mode == _MODES[pooling.mode] for key, mode in _KEYS.items()}
    _write(folder / POOLING / "config.json", {"word_embedding_dimension": width} | keys)
    if pooling.normalized:
        _write(folder / NORMALIZE / "config.json", {})
    _write(folder / TRANSFORMER, {"max_seq_length": max_length, "do_lower_case": False})
    _write(folder / PROMPTS, {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"})
    _write(folder / MODULES, modules)


def _mode_of(config: dict[str, Any], where: str, error: type[LecternError]) -> PoolingMode:
    """Return the mode of a pooling's configuration, which has one key for it, or one for each mode."""
    named = config.get("pooling_mode")
    if named is None:
        named = [mode for key, mode in _KEYS.items() if config.get(key)] or "mean"
    modes = [named] if isinstance(named, str) else list(named) if isinstance(named, list) else []
    found = [own for own, theirs in _MODES.items() if [theirs] == modes]
    if not found:
        valid = ", ".join(get_args(PoolingMode))
        raise error(f"{where}: it pools by {named!r:.80}, but only one of {valid} can be recorded; {_INSTEAD}.")
    return found[0]


def _is_module(module: Any) -> bool:
    """Whether an entry of modules.json is one, with a path that stays in the folder."""
    if not isinstance(module, dict) or not all(isinstance(module.get(key), str) for key in ("type", "path")):
        return False
    path = PurePosixPath(module["path"])
    return not path.is_absolute() and ".." not in path.parts


def _table(
    path: str, name: str, error: type[LecternError], revision: str | None, is_needed: bool = False
) -> dict[str, Any]:
    found = _read(path, name, error, revision)
    if found is None and not is_needed:
        return {}
    if not isinstance(found, dict):
        raise error(f"{path}: there is no table of values in {name}, which {MODULES} needs; restore it.")
    return found


def _read(path: str, name: str, error: type[LecternError], revision: str | None) -> Any:
    """Return the JSON of a file of a folder or hub id; None if there is no such file."""
    if Path(path).is_dir():
        found = Path(path) / name
    else:
        cached = cached_file(
            path,
            name,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if cached is None:
            return None
        found = Path(cached)
    try:
        return parse_json(found.read_bytes())
    except FileNotFoundError:
        return None
    except NotParsed as reason:
        raise error(f"{path}: {name}: {reason}; restore it.") from None
    except OSError as reason:
        raise error(f"{path}: {name} cannot be read ({reason.strerror or reason}); restore it.") from None


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    write_text_atomically(path, json.dumps(content, indent=2) + "\n")
