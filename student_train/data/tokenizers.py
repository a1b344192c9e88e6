"""Whether a model's own tokenizer is that of the rows on which it is trained or scored."""

from pathlib import Path

from shared.errors import RecipeError
from shared.models.loading import load_tokenizer
from student_train.data.sources import Source


def check_same_tokenizer(path: Path | str, source: Source) -> None:
    """Check that a model's own tokenizer gives the same ids as the source's. Raises RecipeError if it does not."""
    try:
        own = load_tokenizer(str(path), RecipeError)
    except RecipeError:
        return  # the model has none; its number of embeddings is checked when it is built
    if own.get_vocab() != source.tokenizer.get_vocab():
        raise RecipeError(
            f"{path}: its tokenizer ({len(own):,} entries) is not that of {source.name} "
            f"({len(source.tokenizer):,} entries), so the same ids are other tokens; choose a model with that one."
        )
