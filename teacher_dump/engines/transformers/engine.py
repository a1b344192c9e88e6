"""The engine that runs models of the transformers library."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shared.dump.codecs import Exact
from shared.dump.facts import Teacher as TeacherFacts
from shared.dump.signals import SignalKey
from shared.dump.weights.projections import Projections
from shared.errors import TeacherError
from shared.models.mixing import MixedInputs, run_mixed, takes_embeddings
from shared.text.tokenized import TokenizedRow
from teacher_dump.engines.base import Engine, TeacherOutputs, Wanted
from teacher_dump.engines.batch import Batch
from teacher_dump.engines.fingerprint import fingerprint_of
from teacher_dump.engines.transformers.forward import run
from teacher_dump.engines.transformers.importance import importance_of
from teacher_dump.engines.transformers.packing import packed_inputs
from teacher_dump.engines.transformers.projections import projections_of
from teacher_dump.engines.transformers.signals import SOURCES, widths_of
from teacher_dump.engines.transformers.teacher import Teacher
from teacher_dump.engines.transformers.weights import config_of, weights_of


class TransformersEngine(Engine):
    """A loaded model of the transformers library; `name` is its folder or hub id."""

    def __init__(self, name: str, teacher: Teacher) -> None:
        self.name, self.teacher = name, teacher
        self.architecture = type(teacher.model).__name__
        self.device, self.dtype, self.vocabulary = teacher.device, teacher.dtype, teacher.vocabulary
        self.one_row_a_batch = teacher.one_row_a_batch
        self.pad_token_id, self.pooling = teacher.pad_token_id, teacher.pooling

    def facts(self) -> TeacherFacts:
        model = self.teacher.model
        return TeacherFacts(
            name=self.name,
            revision=getattr(model.config, "_commit_hash", None),
            architecture=self.architecture,
            parameters=model.num_parameters(),
            fingerprint=fingerprint(model),
            attention_heads=getattr(model.config.get_text_config(), "num_attention_heads", None),
        )

    def offers(self) -> Mapping[str, Sequence[int | None]]:
        return {site: source.layers(self.teacher) for site, source in SOURCES.items()}

    def widths(self, keys: Sequence[SignalKey]) -> list[int]:
        return widths_of(self.teacher, keys)

    def batch(self, rows: Sequence[TokenizedRow], numbers: Sequence[int]) -> Batch:
        """Put rows into one batch on the host, without padding if the model's attention allows it."""
        attention = self.teacher.attention
        has_tokens = any(len(row.input_ids) for row in rows)  # if no row has any, the batch must consist of padding
        if not (self.teacher.packs and attention is not None and has_tokens):
            return super().batch(rows, numbers)
        inputs = packed_inputs(rows, attention.first_position, torch.device("cpu"))
        return self.on_host(Batch(rows, numbers, inputs, packed=True))

    def run(self, batch: Batch, wanted: Wanted) -> TeacherOutputs:
        return run(self.teacher, batch, wanted)

    def exact(self, name: str, states: str) -> Exact:
        if self.teacher.head is None:
            raise TeacherError(f"--exact: {self.architecture} has no head over its vocabulary; choose another rule.")
        return self.teacher.head.exact(name, states)

    def check_mixing(self) -> None:
        if not takes_embeddings(self.teacher.model):
            raise TeacherError(
                f"--mixup: {self.architecture} does not give a row's logits for the row's word embeddings in place of "
                "its token ids (encoder-decoders, and models that classify by a row's last token, do not); leave the "
                "option out, or use another teacher."
            )

    def mixed_logits(self, inputs: MixedInputs) -> Tensor:
        teacher = self.teacher
        logits = teacher.task.logits_of(run_mixed(teacher.model, inputs, teacher.token_types))
        assert logits is not None
        return logits

    def attention_projections(self, layers: Sequence[int], longest_row: int) -> dict[int, Projections]:
        return projections_of(self.teacher, layers, longest_row)

    def word_embeddings(self) -> Tensor:
        weight_VD: Tensor = self.teacher.model.get_input_embeddings().weight
        return weight_VD

    def weights(self, layers: Sequence[int] | None) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        return config_of(self.teacher.model), weights_of(self.teacher.model, layers)

    def importance(
        self, batches: Iterable[Batch], loss: Callable[[Tensor | None, Tensor, Batch], Tensor]
    ) -> dict[str, Tensor]:
        return importance_of(self.teacher, batches, loss)


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over the configuration and every weight: different for teachers with different outputs."""
    config = model.config.to_diff_dict()
    for key in ("transformers_version", "_name_or_path", "dtype", "architectures"):
        config.pop(key, None)
    return fingerprint_of(json.dumps(config, sort_keys=True, default=str), model.state_dict())
