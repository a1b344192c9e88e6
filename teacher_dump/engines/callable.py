"""Your own model as a teacher: a torch module, or any Python function, that returns logits and hidden states.

    from teacher_dump.annotate import annotate, prepare
    from teacher_dump.engines.callable import CallableTeacher
    from teacher_dump.request import Request

    teacher = CallableTeacher(model, tokenizer, label_names=("negative", "positive"))
    annotate(prepare(Request(teacher, "sequence-classification", ("reviews.jsonl",), "out/reviews", hidden="last")))

Shapes: B rows, L tokens of the longest, C classes or vocabulary, D width.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shared.dump.facts import Teacher as TeacherFacts
from shared.dump.signals import EMBEDDING, HIDDEN, SignalKey
from shared.errors import TeacherError, UsageError
from shared.models.pooling import pooled
from shared.options import flag_of
from shared.text.tasks import Task
from teacher_dump.engines.base import Engine, TeacherDescription, TeacherOutputs, Wanted
from teacher_dump.engines.batch import Batch
from teacher_dump.engines.devices import DTYPES, device_named, slice_positions
from teacher_dump.engines.fingerprint import fingerprint_of
from teacher_dump.engines.pooling import asked_pooling, follows_folder
from teacher_dump.engines.probe import looks_ahead, probe_batch
from teacher_dump.request import Request

# Options for loading a folder or a hub id.
_OF_FOLDERS = ("device_map", "revision", "trust_remote_code")


@dataclass(frozen=True, eq=False)
class CallableTeacher:
    """A torch module or a function, and the facts that `dump` cannot find out by running it.

    It is called as `model(input_ids=..., attention_mask=...)` with int64 tensors [B, L], padded on the right, on the
    device of its parameters or of the option `device`. If rows are pairs and it has a parameter `token_type_ids`, it
    gets that too. It returns the logits as one tensor: [B, C] for a task with one distribution per row, otherwise
    [B, L, C]. Or it returns a dict or an object with `logits` and optionally `hidden_states`, a sequence of tensors
    [B, L, D], where number 0 is the input of the first layer and number n the output of the n-th layer. A module is
    put into evaluation mode.

    Attributes:
        model: the module or function.
        tokenizer: a fast tokenizer of transformers.
        label_names: the names of the classes, in the order of the logits; not needed for vocabularies.
        name: a name for messages; by default the module's class. It also distinguishes a function from others.
        version: the version of a function; change it whenever the function computes something else, because a dump
            never mixes teachers. A module is recognised by its class and weights; give it a version if its outputs
            depend on more than these.
        longest_row: the largest number of tokens of a row; None for any number.
    """

    engine: ClassVar[str] = "callable"

    model: Callable[..., Any]
    tokenizer: PreTrainedTokenizerBase
    label_names: Sequence[str] | None = None
    name: str | None = None
    version: str | None = None
    longest_row: int | None = None


@dataclass(frozen=True)
class Description(TeacherDescription):
    """The properties of a `CallableTeacher`."""

    request: Request
    task: Task
    given: CallableTeacher

    def load(self) -> "CallableEngine":
        """Return the engine, after running the model once on an artificial batch."""
        return CallableEngine(self)


def describe(request: Request, task: Task) -> Description:
    """The description of a request's teacher, checked as far as possible without running it.

    Raises:
        UsageError: if a required property is missing, or an option is given that does not apply to such a teacher.
    """
    given = request.teacher
    if not isinstance(given, CallableTeacher):
        raise UsageError(f"teacher {given!r}: the engine 'callable' runs a CallableTeacher; wrap your model in one.")
    if not isinstance(given.model, nn.Module) and (given.name is None or given.version is None):
        raise UsageError(
            "this teacher is not a torch module, so it has no weights that distinguish it from others; give it a name "
            "and a version, and change the version whenever it computes something else."
        )
    for name in _OF_FOLDERS:
        if getattr(request, name) != getattr(Request, name):
            raise UsageError(f"{flag_of(name)} is for teachers that are loaded from a folder or a hub; leave it out.")
    task.check_tokenizer(given.tokenizer)
    names = None
    if task.has_labels:
        names = task.label_names or (None if given.label_names is None else tuple(given.label_names))
        if names is None:
            raise UsageError(f"the task {task.name} needs label_names of this teacher, in the order of its logits.")
    follows_folder(request, task)
    pooling = asked_pooling(request, task, None)
    return Description(given.tokenizer, names, given.longest_row, request, task, given, pooling=pooling)


@dataclass(frozen=True)
class _Returned:
    """The model's outputs for a batch: logits [B, C] or [B, L, C], and hidden states [B, L, D] by layer."""

    logits: Tensor | None
    hidden: Sequence[Tensor]


class CallableEngine(Engine):
    """The engine that runs a `CallableTeacher`."""

    def __init__(self, teacher: Description) -> None:
        given, request, self.task = teacher.given, teacher.request, teacher.task
        self.given, self.layout = given, teacher.task.layout(teacher.task.check_positions(request.positions))
        self.module = given.model if isinstance(given.model, nn.Module) else None
        self.architecture = str(given.name) if self.module is None else type(self.module).__name__
        self.device = self._place(request.device)
        self.pad_token_id, self.pooling = given.tokenizer.pad_token_id or 0, teacher.pooling
        self._inputs = ["input_ids", "attention_mask", *_parameters_named("token_type_ids", given.model)]
        probe = self._probe()
        self.dtype = self._dtype(request.dtype, probe)
        self._widths = [states_BLD.shape[-1] for states_BLD in probe.hidden]
        classes = 0 if probe.logits is None else probe.logits.shape[-1]
        self.vocabulary = classes if self.task.predicts_vocabulary else len(given.tokenizer)
        if self.layout.has_distributions:
            self._check_classes(classes, teacher.label_names)

    def facts(self) -> TeacherFacts:
        given = self.given
        kind = {"name": given.name} if self.module is None else {"class": type(self.module).__qualname__}
        state = {} if self.module is None else self.module.state_dict()
        weights = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        return TeacherFacts(
            name=given.name or self.architecture,
            revision=given.version,
            architecture=self.architecture,
            parameters=sum(each.numel() for each in self._parameters()),
            fingerprint=fingerprint_of(json.dumps(kind | {"version": given.version}), weights),
        )

    def offers(self) -> Mapping[str, Sequence[int | None]]:
        has_embeddings = self.pooling is not None and self._widths
        return {HIDDEN: range(len(self._widths)), EMBEDDING: (None,) if has_embeddings else ()}

    def widths(self, keys: Sequence[SignalKey]) -> list[int]:
        return [self._widths[-1 if key.layer is None else key.layer] for key in keys]

    def run(self, batch: Batch, wanted: Wanted) -> TeacherOutputs:
        found = self._call(batch.inputs)
        vectors = {}
        if wanted.keys:
            token_T = torch.from_numpy(batch.token_index())
            for key in wanted.keys:
                states_BLD = found.hidden[-1 if key.layer is None else key.layer]
                states_TD = states_BLD.flatten(0, 1)[token_T.to(states_BLD.device)]
                if key.site == EMBEDDING and self.pooling is not None:
                    states_TD = pooled(states_TD, batch.lengths, self.pooling)
                vectors[key] = states_TD
        if wanted.distribution is None or found.logits is None:
            return TeacherOutputs(None, None, vectors)
        logits_NC = found.logits.flatten(0, -2)
        return TeacherOutputs(
            lambda index_N: logits_NC[index_N.to(logits_NC.device)].float(),
            slice_positions(logits_NC.shape[-1], logits_NC.device),
            vectors,
        )

    # ---------------------------------------------------------------- the model

    def _place(self, device: str) -> torch.device:
        """The device to run on: that of the option, to which the module is moved, or that of its parameters."""
        if self.module is not None:
            self.module.eval()
            if device != "auto":
                self.module.to(device_named(device))
        first = next(iter(self._parameters()), None)
        return device_named(device) if first is None else first.device

    def _parameters(self) -> list[nn.Parameter]:
        return [] if self.module is None else list(self.module.parameters())

    def _call(self, inputs: Mapping[str, Tensor]) -> _Returned:
        """The model's checked outputs for a batch. Raises TeacherError for outputs of a wrong type or shape."""
        returned = self.given.model(**{name: tensor for name, tensor in inputs.items() if name in self._inputs})
        if isinstance(returned, Tensor):
            returned = {"logits": returned}
        output = SimpleNamespace(**returned) if isinstance(returned, Mapping) else returned
        rows, tokens = inputs["input_ids"].shape
        logits = self._logits(output) if self.layout.has_distributions else None
        if self.layout.has_distributions:
            self._check_shape("logits", logits, (rows,) if self.layout.by_row else (rows, tokens), "classes")
        hidden = tuple(getattr(output, "hidden_states", None) or ())
        for number, states in enumerate(hidden):
            self._check_shape(f"hidden_states[{number}]", states, (rows, tokens), "width")
        return _Returned(logits, hidden)

    def _logits(self, output: Any) -> Any:
        """The output's `logits`; or those that the task takes from outputs with other fields, as in transformers."""
        try:
            return output.logits
        except AttributeError:
            pass
        try:
            return self.task.logits_of(output)
        except AttributeError:
            return None

    def _check_shape(self, what: str, found: Any, leading: tuple[int, ...], last: str) -> None:
        if isinstance(found, Tensor) and found.is_floating_point() and (*found.shape[:-1],) == leading:
            return
        is_tensor = isinstance(found, Tensor)
        described = f"{tuple(found.shape)} of {found.dtype}" if is_tensor else type(found).__name__
        axes = ("rows",) if len(leading) == 1 else ("rows", "tokens")
        raise TeacherError(
            f"the teacher {self.architecture} returned {what} as {described}, but the task {self.task.name} needs a "
            f"floating-point tensor [{', '.join([*axes, last])}], here {[*leading]} and its {last}."
        )

    @torch.inference_mode()
    def _probe(self) -> _Returned:
        found = self._call(probe_batch(self.device))
        if self.task.is_causal and looks_ahead(lambda inputs: self._call(inputs).logits, self.device):
            raise TeacherError(
                f"the teacher {self.architecture} sees the tokens that it should predict, so it is not a causal "
                "language model; choose masked-lm, or mask the tokens to the right of each token."
            )
        return found

    def _check_classes(self, classes: int, label_names: tuple[str, ...] | None) -> None:
        if self.task.predicts_vocabulary and classes < len(self.given.tokenizer):
            raise TeacherError(
                f"the teacher {self.architecture} has {classes:,} logits, fewer than its tokenizer's "
                f"{len(self.given.tokenizer):,} entries; this tokenizer belongs to another model."
            )
        if label_names is not None and classes != len(label_names):
            raise TeacherError(
                f"the teacher {self.architecture} has {classes:,} logits for the {len(label_names)} labels "
                f"{', '.join(label_names[:5])}; there must be one for each."
            )

    def _dtype(self, asked: str, probe: _Returned) -> str:
        shown = [*self._parameters(), *probe.hidden, *([] if probe.logits is None else [probe.logits])]
        own = next((each.dtype for each in shown if each.is_floating_point()), torch.float32)
        name = next((name for name, dtype in DTYPES.items() if dtype == own), str(own).removeprefix("torch."))
        if asked not in ("auto", name):
            raise UsageError(f"--dtype {asked}: this teacher computes in {name}; convert it yourself, or leave it out.")
        return name


def _parameters_named(name: str, model: Callable[..., Any]) -> list[str]:
    """The list of this name, or an empty list if the model has no parameter of this name."""
    try:
        found = signature(model.forward if isinstance(model, nn.Module) else model).parameters
    except (TypeError, ValueError):  # compiled functions have no signature
        return []
    return [name] if name in found else []
