"""`dump --teacher-weights`: the teacher's weights and its configuration.

With both, a model of transformers is made without the teacher's folder or a hub (`Dump.teacher_weights`).
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from shared.dump.weights.tensor_file import TensorFile
from shared.errors import TeacherError, UsageError
from teacher_dump.engines.base import Engine
from teacher_dump.engines.devices import DTYPES
from teacher_dump.request import Request

MOST_DIGITS = 9


def weights(request: Request, engine: Engine) -> TensorFile | None:
    """The file of the teacher's weights.

    Raises:
        UsageError: for an unknown type, or a layer that the teacher lacks.
        TeacherError: if the teacher has no plain weights, or one that is NaN or too large for the type.
    """
    asked, dtype = request.teacher_weights, request.teacher_weights_dtype
    if dtype not in ("auto", *DTYPES):
        raise UsageError(f"--teacher-weights-dtype {dtype!r}: use auto, {', '.join(DTYPES)}.")
    if asked == "none":
        if dtype != "auto":
            raise UsageError("--teacher-weights-dtype says how weights are kept; give --teacher-weights too.")
        return None
    layers = None if asked == "all" else _layers(asked)
    config, tensors = engine.weights(layers)
    dtype = engine.dtype if dtype == "auto" else dtype
    named = "all" if layers is None else ",".join(map(str, layers))
    converted = _Converted(tensors, DTYPES[dtype], dtype)
    return TensorFile.of(converted, layers=named, dtype=dtype, config=dict(config))


def _layers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and len(part) <= MOST_DIGITS for part in parts):
        raise UsageError(f"--teacher-weights {text!r:.80}: use none, all, or layers such as 2,4,6.")
    return sorted({int(part) for part in parts})


class _Converted(Mapping[str, Tensor]):
    """Weights on the host in one type, converted when they are looked up, so that there is never a second copy of all.

    Looking one up raises TeacherError if it is NaN or infinite in this type.
    """

    def __init__(self, weights: Mapping[str, Tensor], dtype: torch.dtype, name: str) -> None:
        self._weights, self._dtype, self._name = weights, dtype, name

    def __getitem__(self, key: str) -> Tensor:
        weight = self._weights[key].detach()
        if not weight.is_floating_point():
            return weight.cpu()
        converted = weight.to(self._dtype)
        if not converted.isfinite().all():
            raise TeacherError(
                f"--teacher-weights: the teacher's weight {key} is NaN, or too large for {self._name}; choose another "
                "--teacher-weights-dtype, or leave the option out."
            )
        return converted.cpu()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
