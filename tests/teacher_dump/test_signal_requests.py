"""A request for a signal that cannot be had is refused in a sentence that names the signal, the codec and the key."""

from typing import Any

import pytest

from shared.errors import UsageError
from teacher_dump.request import SignalRequest
from teacher_dump.signals import vectors


@pytest.mark.parametrize(("codec", "parameters", "sentence"), [
    ("low-rank", {"rank": 0}, "signal 'hidden.6': codec 'low-rank': rank = 0: Input should be greater than "),
    ("low-rank", {}, "signal 'hidden.6': codec 'low-rank': the key 'rank' is missing."),
    ("int8", {"rnak": 2}, r"signal 'hidden.6': codec 'int8': unknown key 'rnak' \(its value is 2\); valid here: "),
    ("int9", {}, "int9"),
])  # fmt: skip
def test_a_codec_that_cannot_be_is_refused(codec: str, parameters: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        vectors(SignalRequest("hidden", 6, codec, parameters), 32)
