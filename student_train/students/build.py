"""Build the model that is trained, from a recipe's description of a student.

Students that cannot be used (without the head, with labels in another order, with too few embeddings) are refused here,
before the first step.
"""

from torch import nn
from transformers import PreTrainedModel

from shared.errors import RecipeError
from shared.models.pooling import set_pooling
from student_train.chains.transitions import add_transitions, load_transitions, transitions_of
from student_train.students.base import Student
from student_train.students.needs import Needs

# Names of the modules that look up learned positions, which limit the length of rows.
POSITION_MODULES = ("position_embeddings", "embed_positions", "wpe")


def build_student(student: Student, needs: Needs) -> PreTrainedModel:
    """Build the student of a recipe in float32; new weights are drawn from torch's global generator.

    Raises:
        RecipeError: if the student does not fit the needs.
    """
    model = student.build(needs)
    for initialiser in student.initialisers:
        initialiser.initialise(model, needs)
    if getattr(model.config, "pad_token_id", None) is None:
        # Many decoders have none, but as classifiers they search for the last token before the padding.
        model.config.pad_token_id = needs.pad_token_id
    if needs.pooling is not None:
        set_pooling(model, needs.pooling)
    if student.crf:
        assert needs.label_names is not None
        if student.checkpoint is not None:
            load_transitions(model, needs.label_names, student.checkpoint)
        if transitions_of(model) is None:
            add_transitions(model, len(needs.label_names))
    _check_reach(model, student.known_ids(model), needs)
    return model


def _check_reach(model: PreTrainedModel, known_ids: int, needs: Needs) -> None:
    """Refuse a model that would index past its embeddings, which a GPU reports only as a failed assertion."""
    # The head of a language model is as wide as its embeddings: both are the configuration's vocab_size.
    if known_ids < needs.tokenizer_size:
        raise RecipeError(
            f"The student's vocabulary has {known_ids} ids, but the tokenizer has {needs.tokenizer_size}; choose a "
            "student that was made for the dump's tokenizer."
        )
    reach = reach_of(model)
    if reach is not None and reach < needs.max_length:
        raise RecipeError(
            f"The student reads at most {reach} tokens, but the dump's rows have up to {needs.max_length}; choose a "
            "student with more positions, or dump with a smaller --max-length."
        )


def reach_of(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model has position embeddings for; None if it has none."""
    reaches = []
    for name, module in model.named_modules():
        if name.endswith(POSITION_MODULES) and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            reaches.append(module.num_embeddings - first)
    return min(reaches, default=None)
