"""The widths of a student's hidden states."""

from transformers import PreTrainedModel

from shared.models.probe import FEWEST_TOKENS, probe_inputs
from student_train.forward.evaluating import evaluating


def hidden_widths(student: PreTrainedModel) -> list[int]:
    """Return the widths of the student's hidden states, found with a made-up row."""
    with evaluating(student):
        output = student(**probe_inputs(student, FEWEST_TOKENS), output_hidden_states=True)
    return [states.shape[-1] for states in output.hidden_states]
