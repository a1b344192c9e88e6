"""The budget of tokens per batch: as many as fit into the device's memory, and half as many whenever it runs out."""

from collections.abc import Callable, Iterator

from shared.dump.manifest import Manifest
from shared.errors import TeacherError
from shared.text.tokenized import TokenizedRow
from teacher_dump.batching.rows import batch_of
from teacher_dump.engines.base import Engine
from teacher_dump.engines.batch import Batch
from teacher_dump.extract import Encoded, extract

# Larger batches are not faster on any device.
MOST_TOKENS = 131_072
# The share of a device's memory that a batch is planned to take.
USED_SHARE = 0.8
# Tokens of the smaller of two batches that show how memory grows; one row if it is longer.
PROBE_TOKENS = 2_048


class Budget:
    """The number of tokens per batch, including padding; None stands for the device's default."""

    def __init__(self, tokens: int | None, engine: Engine) -> None:
        self.tokens = tokens or engine.memory.default_tokens

    def __call__(self) -> int:
        return self.tokens

    def shrink(self, failed_tokens: int) -> None:
        """Set the budget to half of a batch that did not fit into memory."""
        self.tokens = max(1, min(self.tokens, failed_tokens // 2))

    def fit(self, engine: Engine, manifest: Manifest, longest: TokenizedRow) -> None:
        """Set the budget to what fits into the device's memory, extrapolated from two batches of the longest row."""
        row_tokens = max(1, len(longest.input_ids))
        memory = engine.memory
        usable_bytes = memory.usable_bytes

        def peak_bytes(tokens: int) -> int:
            rows = [longest] * (tokens // row_tokens)
            return memory.peak_bytes(
                lambda: extract(engine, manifest, batch_of(engine, manifest.layout, rows, range(len(rows))))
            )

        try:
            self.tokens = largest_batch(peak_bytes, usable_bytes, row_tokens)
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):  # if it has, the budget stays, and is halved whenever a batch does not fit
                raise
        finally:
            memory.release()


def largest_batch(peak_bytes: Callable[[int], int], usable_bytes: int, row_tokens: int) -> int:
    """The number of tokens of a batch that takes `USED_SHARE` of the memory, if memory grows linearly with tokens.

    `peak_bytes` is called with multiples of `row_tokens` only.
    """
    few = max(1, PROBE_TOKENS // row_tokens) * row_tokens
    more = 2 * few
    least = peak_bytes(few)
    bytes_per_token = max(1.0, (peak_bytes(more) - least) / (more - few))
    room = USED_SHARE * usable_bytes - least
    return int(min(MOST_TOKENS, max(few, few + room / bytes_per_token)))


def extract_within_memory(
    engine: Engine, manifest: Manifest, batch: Batch, budget: Budget, say: Callable[[str], None]
) -> Iterator[tuple[Batch, Encoded]]:
    """Yield the batch with its encoded signals; if memory runs out, the same for its two halves.

    Raises:
        TeacherError: for a single row that does not fit into memory.
    """
    encoded = _extract_if_it_fits(engine, manifest, batch)
    if encoded is not None:
        yield batch, encoded
        return
    engine.memory.release()
    if len(batch.rows) == 1:
        raise TeacherError(
            f"row {batch.numbers[0]}: its {batch.tokens:,} tokens do not fit into the memory of {engine.device}; use "
            "a smaller --max-length, --dtype bf16, --device-map auto or a larger device."
        )
    budget.shrink(batch.tokens)
    say(f"memory ran out at {batch.tokens:,} tokens a batch; continuing with {budget.tokens:,}")
    half = len(batch.rows) // 2
    for part in (slice(half), slice(half, None)):
        smaller = batch_of(engine, manifest.layout, batch.rows[part], batch.numbers[part], batch.mixtures[part])
        yield from extract_within_memory(engine, manifest, smaller, budget, say)


def _extract_if_it_fits(engine: Engine, manifest: Manifest, batch: Batch) -> Encoded | None:
    # A separate function, because the traceback of an error keeps the tensors of the failed batch alive until it ends.
    try:
        return extract(engine, manifest, batch)
    except (RuntimeError, MemoryError) as error:
        if not engine.memory.ran_out(error):
            raise
        return None
