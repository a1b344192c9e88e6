"""The properties that a source requires of a student, and the data from which the student is initialised."""

from torch import Tensor

from shared.dump.facts import Pooling
from shared.errors import RecipeError
from student_train.data.sources import Source
from student_train.data.vocabulary import kept_ids
from student_train.students import Needs, Student
from student_train.students.needs import Teacher


def needs_of(student: Student, source: Source) -> Needs:
    """Everything that is needed to build `student` for this source.

    Raises:
        RecipeError, DumpError: if the source lacks the data from which the student is initialised.
    """
    if student.crf and not source.has_chains:
        raise RecipeError(
            "student.crf = true is for tags of words (token-classification at first-subtoken positions), and "
            f"{source.name} has other rows; leave the key out."
        )
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
        pooling=_pooling(student, source),
        word_embeddings_VD=_word_embeddings(student, source),
        teacher=_teacher(student, source),
    )


def _teacher(student: Student, source: Source) -> Teacher | None:
    """The teacher's weights, with the importance of its parts, as far as the student is initialised from them."""
    starts = [initialiser for initialiser in student.initialisers if initialiser.needs_teacher]
    if not starts:
        return None
    wants_importance = any(start.needs_importance for start in starts)
    return Teacher(*source.teacher_weights(), source.importance() if wants_importance else None)


def _pooling(student: Student, source: Source) -> Pooling | None:
    """How the student makes embeddings of rows: as its keys say, else like the teacher; None if it makes none."""
    is_asked = student.pooling is not None or student.normalize is not None
    if is_asked and not source.task.has_embeddings:
        key = "pooling" if student.pooling is not None else "normalize"
        raise RecipeError(f"student.{key}: the task {source.task.name} has no embeddings of rows; leave it out.")
    if not is_asked:
        return source.pooling
    said = source.pooling or Pooling()
    normalized = said.normalized if student.normalize is None else student.normalize
    return Pooling(mode=student.pooling or said.mode, normalized=normalized)


def _word_embeddings(student: Student, source: Source) -> Tensor | None:
    """The teacher's word embeddings [V, D], if the student is initialised from them; otherwise None."""
    kinds = [initialiser.kind for initialiser in student.initialisers if initialiser.needs_word_embeddings]
    if not kinds:
        return None
    found_VD = source.word_embeddings()
    if found_VD is None:
        raise RecipeError(
            f"student.embeddings = {kinds[0]!r} needs a teacher's word embeddings, which a dump can have (dump "
            "--embeddings), but files with gold labels do not; train on a dump, or leave the key out."
        )
    return found_VD
