"""The only place where configurations, tokenizers and models are loaded from folders or the hub.

What is loaded may come from anybody. transformers asks on the terminal whether to run Python code that a folder brings,
unless it is told: here it is always told. Weights are read from safetensors only. Whatever is wrong with a folder
becomes one sentence.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from shared.errors import LecternError
from shared.memory import free_bytes
from shared.parsing import parse_json
from shared.progress import human_bytes

transformers.utils.logging.disable_progress_bar()

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
# Even the modules of so many layers, without weights, take seconds to make.
MOST_LAYERS = 500


def load_config(
    path: str, error: type[LecternError], trust_remote_code: bool = False, revision: str | None = None
) -> Any:
    """Return the configuration of a model's folder or hub id.

    Args:
        error: the type of the exception that is raised if there is none, or it cannot be used.
        trust_remote_code: whether Python code that comes with it is run. Without it, such a folder is an error.
    """
    if not Path(path).is_dir() and not _HUB_ID.fullmatch(path):
        what = "this is a file" if Path(path).is_file() else "there is no such folder"
        raise error(f"{path}: {what}; give a model's folder or a hub id.")
    with _in_words(path, "configuration", error):
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)


def load_tokenizer(
    path: str,
    error: type[LecternError],
    trust_remote_code: bool = False,
    revision: str | None = None,
    name: str | None = None,
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub id, which messages call `name`; the other arguments are those of
    `load_config`."""
    with _in_words(name or path, "tokenizer", error):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    # For a model saved without a tokenizer, transformers makes one that has only the special tokens.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise error(f"{name or path}: there is no tokenizer beside this model; save one there, or name another.")
    return tokenizer


def load_model(
    auto_class: str,
    path: str,
    config: Any,
    error: type[LecternError],
    trust_remote_code: bool = False,
    **options: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """Return (a model with the weights of a folder or hub id, the sorted names of weights that it lacks).

    Args:
        auto_class: name of the Auto class of transformers.
        config: its configuration, from `load_config`.
        options: passed on to `from_pretrained`.

    Raises:
        LecternError: an exception of type `error`, if the weights are damaged, missing or not safetensors, do not fit
            the configuration, or need more memory than there is.
    """
    loader = getattr(transformers, auto_class)
    with _in_words(path, f"model for {auto_class}", error):
        if options.get("device_map") is None:
            parameters = parameters_of(auto_class, config, trust_remote_code)
            _check_memory(path, parameters * options.get("dtype", torch.float32).itemsize, error)
        model, info = loader.from_pretrained(
            path,
            config=config,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    return model, sorted(info["missing_keys"])


def parameters_of(auto_class: str, config: Any, trust_remote_code: bool = False) -> int:
    """Return how many parameters a model with this configuration would have, without allocating them.

    Raises:
        ValueError: if it would have more than MOST_LAYERS layers.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise ValueError(f"{layers:,} layers are more than {MOST_LAYERS:,}")
    # The random numbers of the training must not depend on this.
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = getattr(transformers, auto_class).from_config(config, trust_remote_code=trust_remote_code)
    return int(model.num_parameters())


def fresh_model(auto_class: str, config: Any, error: type[LecternError]) -> PreTrainedModel:
    """Return a model with this configuration and random weights.

    Raises:
        LecternError: an exception of type `error`, if the model would need more memory than there is.
    """
    try:
        parameters = parameters_of(auto_class, config)
    except (ValueError, TypeError, OverflowError, RuntimeError) as raised:
        reason = str(raised).strip().split("\n")[0].rstrip(".")
        if "overflow" in reason:
            reason = "some of its weights would be larger than 8 EB, the most that a tensor can have"
        raise error(f"the student cannot be built ({reason}); choose a smaller shape.") from raised
    _check_memory("the student", parameters * torch.float32.itemsize, error)
    model: PreTrainedModel = getattr(transformers, auto_class).from_config(config, trust_remote_code=False)
    return model


def _check_memory(what: str, needed: int, error: type[LecternError]) -> None:
    free = free_bytes()
    if free is not None and needed > free:
        raise error(
            f"{what}: the weights would take {human_bytes(needed)}, but {human_bytes(free)} of memory are free; choose "
            "a smaller model."
        )


@contextmanager
def _in_words(path: str, what: str, error: type[LecternError]) -> Iterator[None]:
    """Raise what goes wrong while something is loaded as one sentence.

    A folder of unknown origin can make transformers raise almost anything (KeyError, TypeError, RecursionError, errors
    of tokenizers, which are bare Exceptions), so every exception is caught.
    """
    try:
        yield
    except LecternError:
        raise
    except Exception as raised:
        if "trust_remote_code" in str(raised):
            raise error(
                f"{path}: {_code_of(path)} asks to run Python code that comes with it (auto_map), and Lectern does not "
                "run code of unknown origin. Only `dump --trust-remote-code` does, for a teacher that you trust."
            ) from raised
        if isinstance(raised, RecursionError):
            reason = "its JSON is nested too deeply"
        else:
            reason = " ".join(str(raised).strip().split("\n")[0].split()).rstrip(".") or type(raised).__name__
            reason = reason if isinstance(raised, OSError | ValueError) else f"{type(raised).__name__}: {reason}"
        raise error(f"{path}: no {what} can be loaded from there ({reason}).") from raised


def _code_of(path: str) -> str:
    """Return the name of the file of a folder that refers to code."""
    for name in ("config.json", "tokenizer_config.json"):
        try:
            if "auto_map" in parse_json((Path(path) / name).read_bytes()):
                return name
        except (OSError, ValueError, TypeError):
            continue
    return "it"
