"""How a tagger's logits become tags: an option of `distill eval`, and a key of [eval]."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_doc import Doc

Decode = Literal["argmax", "viterbi"]


@dataclass(frozen=True)
class Decoding:
    """How predictions are made of logits."""

    decode: Annotated[
        Decode | None,
        Doc(
            "token-classification: argmax (each word's most probable tag) or viterbi (a row's most probable tags that "
            "keep to BIO, IOBES or BILOU, with the model's own transitions if it has some). By default viterbi for a "
            "model with transitions, and argmax otherwise."
        ),
    ] = None
