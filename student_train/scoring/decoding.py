"""From logits to predicted classes: the most probable class at each position, or the most probable tags of each row.

Shapes: N recorded positions, C classes.
"""

from collections.abc import Callable
from typing import get_args

from torch import Tensor, nn

from shared.errors import UsageError
from student_train.chains.batch import viterbi
from student_train.chains.schemes import legality_of
from student_train.chains.transitions import transitions_of
from student_train.data.batch import Batch
from student_train.data.sources import Source
from student_train.forward.observe import chains_of
from student_train.recipe.decoding import Decode

# (logits_NC, their batch) -> classes_N
Decoder = Callable[[Tensor, Batch], Tensor]


def decoder_of(decode: Decode | None, model: nn.Module, source: Source) -> tuple[Decode, Decoder]:
    """Return (the choice for None or the one given, the function that makes predictions of a model's logits)."""
    learnt = transitions_of(model) if source.has_chains else None
    if (decode or ("argmax" if learnt is None else "viterbi")) == "argmax":
        return "argmax", lambda logits_NC, batch: logits_NC.argmax(-1)

    def decoded(logits_NC: Tensor, batch: Batch) -> Tensor:
        chains = chains_of(batch, source)
        assert chains is not None
        return viterbi(logits_NC, chains, learnt)

    return "viterbi", decoded


def check_decode(
    decode: Decode | None, has_chains: bool, label_names: tuple[str, ...] | None, has_transitions: bool, key: str
) -> None:
    """Check the choice before any row is scored; `key` names it in messages.

    Raises:
        UsageError: for an unknown choice; for viterbi where rows have no tags of words, or nothing is known of what
            may follow what.
    """
    if decode not in (None, *get_args(Decode)):
        raise UsageError(f"{key} {decode!r:.80} is unknown; the valid ones are {', '.join(get_args(Decode))}.")
    if decode != "viterbi":
        return
    if not has_chains:
        raise UsageError(
            f"{key} viterbi is for tags of words (token-classification at first-subtoken positions); leave it out."
        )
    if not has_transitions and legality_of(label_names or ()) is None:
        raise UsageError(
            f"{key} viterbi: the labels ({', '.join(label_names or ())[:80]}) follow none of BIO, IOBES and BILOU, and "
            "the model has no transitions of its own, so every path is as legal as any other; leave it out."
        )
