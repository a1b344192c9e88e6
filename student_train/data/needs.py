"""What a source asks of a student, and what it has for the student to begin from."""

from torch import Tensor

from shared.errors import RecipeError
from student_train.data.sources import Source
from student_train.data.vocabulary import kept_ids
from student_train.students import Needs, Student


def needs_of(student: Student, source: Source) -> Needs:
    """Everything that `student` is built from.

    Raises:
        RecipeError, DumpError: where the source lacks what the student begins from.
    """
    tokenizer = source.tokenizer
    return Needs(
        auto_class=source.task.auto_class,
        vocab_size=source.vocabulary,
        tokenizer_size=len(tokenizer),
        label_names=source.label_names,
        pad_token_id=tokenizer.pad_token_id,
        max_length=source.max_length,
        kept_ids_K=kept_ids(student, source),
        unknown_id=tokenizer.unk_token_id,
        word_embeddings_VD=_word_embeddings(student, source),
    )


def _word_embeddings(student: Student, source: Source) -> Tensor | None:
    """The teacher's [V, D], if the student begins from them; None otherwise."""
    asking = [initialiser.kind for initialiser in student.initialisers if initialiser.needs_word_embeddings]
    if not asking:
        return None
    found_VD = source.word_embeddings()
    if found_VD is None:
        raise RecipeError(
            f"student.embeddings = {asking[0]!r} begins from a teacher's word embeddings, which a dump may keep (dump "
            "--embeddings) and files with gold labels have not; learn from a dump, or leave the key out."
        )
    return found_VD
