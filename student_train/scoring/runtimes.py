"""Runtimes, which compute a model's logits for a batch: torch, or onnxruntime with an exported file.

Shapes: B rows, L tokens of the longest, padded on the right.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shared.errors import LecternError, UsageError

MODEL_FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = ("logits", "start_logits", "end_logits")
# Logits differ because float32 sums are taken in another order. Measured: 1e-6 at usual scales, 3e-4 for random ids and
# a random head whose logits reach 40. A wrong graph that attends to padding differs by 1e-2 and more.
ABSOLUTE_TOLERANCE = 1e-3
RELATIVE_TOLERANCE = 1e-3


class Runtime(Protocol):
    """Something that runs a model. `inputs` prepares a batch in advance, so that only `run` is timed."""

    name: str

    def inputs(self, tensors: Mapping[str, Tensor]) -> Any:
        """Return input_ids, attention_mask and perhaps token_type_ids [B, L] in the form that `run` takes."""

    def run(self, inputs: Any) -> dict[str, Tensor]:
        """Run one forward pass to its end, and return those of `OUTPUTS` that the model has, by name."""


class TorchRuntime:
    """A transformers model in torch, on its own device."""

    name = "torch"

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def inputs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.model.device) for name, tensor in tensors.items()}

    @torch.inference_mode()
    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        output = self.model(**inputs)
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return {name: output[name] for name in OUTPUTS if name in output}


class OnnxRuntime:
    """An exported file on the CPU, with as many threads as torch has.

    Raises:
        UsageError: if the package onnxruntime is not installed.
        LecternError: if onnxruntime cannot load the file.
    """

    name = "onnxruntime"

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UsageError("running ONNX files needs onnxruntime: pip install 'lectern[onnx]'.") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # No spinning, as the command line sets it for torch: threads that spin while they wait slow down others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base class
            reason = str(error).strip().split("\n")[0]
            raise LecternError(f"{path}: onnxruntime cannot load it ({reason}).") from None
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def inputs(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        # Rows of a single text come without token types; models in torch then use zeros.
        absent = torch.zeros_like(tensors["input_ids"])
        return {name: tensors.get(name, absent).numpy() for name in self._inputs}

    def run(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        arrays = self._session.run(self._outputs, inputs)
        return {name: torch.from_numpy(array) for name, array in zip(self._outputs, arrays, strict=True)}


def has_onnxruntime() -> bool:
    """Whether the package onnxruntime is installed."""
    return find_spec("onnxruntime") is not None


def difference(reference: Runtime, other: Runtime, tensors: Mapping[str, Tensor]) -> tuple[float, bool]:
    """Return (the largest absolute difference between the logits of two runtimes, whether all are within tolerance).

    Logits at padding are compared as well.
    """
    expected, found = reference.run(reference.inputs(tensors)), other.run(other.inputs(tensors))
    largest, is_close = 0.0, expected.keys() == found.keys()
    for name in expected.keys() & found.keys():
        wanted = expected[name].cpu()
        if wanted.shape != found[name].shape:
            return float("inf"), False
        # If both are -inf, their difference would be NaN.
        apart = torch.where(wanted == found[name], 0.0, (wanted - found[name]).abs())
        largest = max(largest, float(apart.max()))
        is_close &= torch.allclose(found[name], wanted, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE)
    return largest, is_close
