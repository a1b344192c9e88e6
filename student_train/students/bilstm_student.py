"""A BiLSTM as a student, for classification."""

from typing import Literal, Self

from pydantic import Field, model_validator
from transformers import PreTrainedModel

from shared.numbers import Count
from student_train.students.base import Student
from student_train.students.bilstm import BiLSTMConfig, TrimmedEmbedding
from student_train.students.heads import fresh_model, fresh_values
from student_train.students.initialisers import INITIALISERS, Embeddings, Initialiser
from student_train.students.needs import Needs


class BiLSTMStudent(Student):
    """A BiLSTM; `hidden_size` is the width of both directions together.

    With `trim_vocabulary`, only tokens that occur at least this often in the training rows get an embedding; the others
    are read as the tokenizer's unknown token.
    """

    kind: Literal["bilstm"] = "bilstm"
    embedding_size: Count
    hidden_size: Count
    layers: Count = 1
    dropout: float = Field(default=0.1, ge=0, lt=1)
    embeddings: Embeddings = Field(default="random", description="svd: the teacher's, compressed to embedding_size")
    trim_vocabulary: Count | None = None

    @model_validator(mode="after")
    def _directions_share_the_width(self) -> Self:
        if self.hidden_size % 2:
            raise ValueError(
                f"hidden_size = {self.hidden_size} cannot be halved between the two directions of a BiLSTM; "
                "make it even"
            )
        return self

    @property
    def fewest_occurrences(self) -> int | None:
        return self.trim_vocabulary

    @property
    def initialisers(self) -> tuple[Initialiser, ...]:
        return (INITIALISERS.named(self.embeddings)(kind=self.embeddings),)

    def build(self, needs: Needs) -> PreTrainedModel:
        kept_ids_K = needs.kept_ids_K
        shape = self.model_dump(include={"embedding_size", "hidden_size", "dropout"})
        rows = None if kept_ids_K is None else len(kept_ids_K)
        config = BiLSTMConfig(num_hidden_layers=self.layers, embedding_rows=rows, **shape, **fresh_values(needs))
        model = fresh_model(config, needs.auto_class)
        if kept_ids_K is not None:
            assert needs.unknown_id is not None
            model.get_input_embeddings().keep(kept_ids_K, needs.unknown_id)
        return model

    def known_ids(self, model: PreTrainedModel) -> int:
        table = model.get_input_embeddings()
        return len(table.row_of_id) if isinstance(table, TrimmedEmbedding) else super().known_ids(model)
