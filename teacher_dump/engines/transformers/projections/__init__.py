"""The projections of a teacher's attention, for `--attention-inputs`: found by running the teacher, not by its name."""

from teacher_dump.engines.transformers.projections.finding import projections_of

__all__ = ["projections_of"]
