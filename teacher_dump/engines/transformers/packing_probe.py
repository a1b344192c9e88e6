"""Test on a few tokens whether a model gives the same outputs for packed rows.

Other parts than attention may mix rows (convolutions, recurrences, statistics of a batch) or count tokens from the
start of the batch (positions, distances). So a few rows are run one by one and packed, and their outputs must be the
same up to rounding. In half precision rounding hides many differences, so two more tests are exact: a row must keep
every bit when it is given the position ids that it has when alone; and when the embeddings of one row are NaN, which
spreads to everything computed from them, the other rows must stay free of NaN.

Shapes: T tokens of all rows, D width, V vocabulary or classes.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from shared.text.tokenized import TokenizedRow
from teacher_dump.engines.transformers.packing import packed_inputs

LENGTHS = (5, 3, 3, 1)
# The packed rows are longer than a table of positions of up to this size, as batches will be.
SMALL_TABLE = 1024
ROUNDINGS = 16
GOLDEN = 0.6180339887


def same_within(model: PreTrainedModel, context: Callable[[], AbstractContextManager[None]]) -> bool:
    """Whether a row gives the same outputs inside a context as outside, bit by bit."""
    inputs = {"input_ids": _alone(model, probe_rows(model)[0])}
    outside = _outputs(model, inputs)
    with context():
        inside = _outputs(model, inputs)
    return _identical(inside, outside)


def first_position_of(model: PreTrainedModel) -> int | None:
    """The position id of a row's first token: 0, or the pad token's id plus 1 (RoBERTa and similar models).

    None if the model takes no position ids, or computes them in another way.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return None
    ids_1T = _alone(model, probe_rows(model)[0])
    own = _outputs(model, {"input_ids": ids_1T})
    counted_1T = torch.arange(ids_1T.shape[1], device=ids_1T.device)[None]
    for first in (0, (model.config.get_text_config().pad_token_id or 0) + 1):
        if _identical(_outputs(model, {"input_ids": ids_1T, "position_ids": counted_1T + first}), own):
            return first
    return None


def same_when_packed(
    model: PreTrainedModel,
    first_position: int | None,
    packing: Callable[[Sequence[int]], AbstractContextManager[None]],
) -> bool:
    """Whether packed rows, run inside `packing(lengths)`, give the same outputs as each row alone without padding.

    Last hidden states are compared, and logits if there are some for every token, by the norm of the difference at each
    position.
    """
    distinct = probe_rows(model)
    table = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
    copies = table // sum(LENGTHS) + 1 if table <= SMALL_TABLE else 1
    rows = [row for row in distinct for _ in range(copies)]
    lengths = [len(row.input_ids) for row in rows]
    inputs = packed_inputs(rows, first_position, model.device)
    with packing(lengths):
        packed = _outputs(model, inputs)
    alone = [_outputs(model, {"input_ids": _alone(model, row)}) for row in distinct]
    for number, found_1TD in enumerate(packed):
        expected_1TD = torch.cat([outputs[number] for outputs in alone for _ in range(copies)], dim=1)
        if not _close(found_1TD, expected_1TD, torch.finfo(model.dtype).eps):
            return False
    poisoned_T = (
        torch.arange(len(rows), device=model.device).repeat_interleave(torch.tensor(lengths, device=model.device))
        == copies
    )  # the first of the rows that are next to a row of the same length
    with packing(lengths), _not_a_number(model, poisoned_T):
        hidden_1TD = _outputs(model, inputs)[0]
    return torch.equal(hidden_1TD[0].isnan().any(-1), poisoned_T)


def probe_rows(model: PreTrainedModel) -> list[TokenizedRow]:
    """Rows of LENGTHS ordinary tokens, spread over the vocabulary."""
    config = model.config.get_text_config()
    named = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "sep", "cls", "mask", "unk")]
    special = {index for ids in named for index in (ids if isinstance(ids, list) else [ids])}
    ordinary = [index for index in range(model.get_input_embeddings().weight.shape[0]) if index not in special]
    numbers = np.arange(sum(LENGTHS)) * GOLDEN % 1 * len(ordinary)
    ids_T = np.array(ordinary, np.int32)[numbers.astype(np.int64)]
    nothing = np.zeros(0, np.int32)
    return [TokenizedRow(ids, None, nothing, nothing) for ids in np.split(ids_T, np.cumsum(LENGTHS)[:-1])]


def _alone(model: PreTrainedModel, row: TokenizedRow) -> Tensor:
    """A row's ids [1, L]."""
    return packed_inputs([row], None, model.device)["input_ids"]


def _outputs(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The last hidden states [1, T, D] and, for classifiers of tokens, the logits [1, T, V].

    A language model runs without its head, whose logits for this many tokens would be the largest tensor of the whole
    dump. Its head takes each token by itself (`VocabularyHead` tests that).
    """
    runner = model if model.get_output_embeddings() is None else model.base_model
    arguments: dict[str, Any] = {**inputs, "output_hidden_states": True, "return_dict": True}
    if "use_cache" in inspect.signature(runner.forward).parameters:
        arguments["use_cache"] = False
    output = runner(**arguments)
    hidden_1TD, logits = output.hidden_states[-1], getattr(output, "logits", None)
    if logits is None or logits.ndim != 3 or logits.shape[:2] != hidden_1TD.shape[:2]:
        return [hidden_1TD]
    return [hidden_1TD, logits]


@contextmanager
def _not_a_number(model: PreTrainedModel, which_T: Tensor) -> Iterator[None]:
    """While open, these tokens' embeddings are NaN."""
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, arguments, embedded_1TD: embedded_1TD.masked_fill(which_T[None, :, None], torch.nan)
    )
    try:
        yield
    finally:
        hook.remove()


def _identical(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(some, others, strict=True))


def _close(found_1TD: Tensor, expected_1TD: Tensor, rounding: float) -> bool:
    """Whether the outputs are equal up to rounding at each position.

    With one norm over the whole batch, a large number would hide differences at other positions.
    """
    differences_1T = (found_1TD.float() - expected_1TD.float()).norm(dim=-1)
    allowed_1T = max(1e-4, ROUNDINGS * rounding) * expected_1TD.float().norm(dim=-1)
    return bool((differences_1T <= allowed_1T).all())
