"""Fill the table of tasks."""

from shared.text.tasks.base import TASKS, Task
from shared.text.tasks.causal_lm import CausalLM
from shared.text.tasks.encoder import Encoder
from shared.text.tasks.masked_lm import MaskedLM
from shared.text.tasks.question_answering import QuestionAnswering
from shared.text.tasks.sequence_classification import SequenceClassification
from shared.text.tasks.token_classification import TokenClassification

for _task in (
    CausalLM(),
    MaskedLM(),
    SequenceClassification(),
    TokenClassification(),
    QuestionAnswering(),
    Encoder(),
):
    TASKS[_task.name] = _task


def task_named(name: str) -> Task:
    """The task of this name. Raises UsageError for an unknown name, with the list of valid ones."""
    return TASKS.named(name)
