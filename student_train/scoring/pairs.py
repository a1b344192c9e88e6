"""Scores of embeddings: correlations of the cosine similarity of two texts with the scores of pairs.

Shapes: R rows, P pairs, D width.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shared.dump.facts import Pooling
from shared.errors import LecternError, RecipeError
from shared.models.pooling import pooled, pooling_of, set_pooling
from shared.models.sentence_folder import read_sentence_folder
from shared.text.metrics import correlations
from student_train.data.batches import in_order
from student_train.data.pairs import ScoredPairs
from student_train.data.sources import Source
from student_train.forward.observe import outputs_of
from student_train.scoring.predictions import EVAL_ROWS


def follow_folder(model: PreTrainedModel, path: Path | str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Pool a loaded model's embeddings as the files beside it say, and return the number of tokens that they allow.

    Without such files, an embedding is the mean of the last hidden states, as in the library sentence-transformers, and
    the number is None.

    Raises:
        RecipeError: for files that are damaged, or ask for what is not done here.
    """
    folder = read_sentence_folder(str(path), RecipeError)
    set_pooling(model, Pooling() if folder is None else folder.pooling)
    if folder is None:
        return None
    folder.check_tokenizer(str(path), tokenizer, RecipeError)
    return folder.max_length


@torch.inference_mode()
def embeddings_of(model: PreTrainedModel, source: Source) -> NDArray[np.float32]:
    """Return the embeddings [R, D] of all rows of a source by a model in evaluation mode, in the source's order."""
    pooling, parts, rows = pooling_of(model) or Pooling(), [], []
    for host_batch in in_order(source, (), EVAL_ROWS, by_length=True):
        batch = host_batch.to(model.device)
        outputs = outputs_of(model, batch, source, wants_hidden=True)
        found_BD = pooled(outputs.hidden_TD[-1], outputs.lengths, pooling)
        if not bool(found_BD.isfinite().all()):
            raise LecternError(
                "the model's embeddings have NaN or infinite numbers, so it cannot be scored; train it again with a "
                "lower learning rate."
            )
        parts.append(found_BD.cpu().numpy())
        rows.append(batch.rows.cpu().numpy())
    embeddings_RD: NDArray[np.float32] = np.concatenate(parts)[np.argsort(np.concatenate(rows))]
    return embeddings_RD


def scores_of(model: PreTrainedModel, pairs: ScoredPairs) -> dict[str, float]:
    """Return the correlations of a model, in evaluation mode, on pairs. The cosine with a zero vector counts as 0."""
    embeddings_RD = embeddings_of(model, pairs.texts).astype(np.float64)
    first_PD, second_PD = embeddings_RD[pairs.first_P], embeddings_RD[pairs.second_P]
    lengths_P = np.linalg.norm(first_PD, axis=1) * np.linalg.norm(second_PD, axis=1)
    cosines_P = (first_PD * second_PD).sum(1) / np.maximum(lengths_P, np.finfo(np.float64).tiny)
    return correlations(cosines_P, pairs.scores_P)
