"""How many tokens a batch may have: as many as the device's memory holds, and fewer from the first time that it does
not."""

from collections.abc import Callable, Iterator

import torch

from shared.dump.manifest import Manifest
from shared.errors import TeacherError
from shared.text.tasks import TokenizedRow
from teacher_dump.batches import Batch
from teacher_dump.engines.transformers.teacher import Teacher
from teacher_dump.extract import Encoded, extract
from teacher_dump.rows import batch_of

# On a CPU larger batches are slower: what a layer hands to the next no longer fits its caches (a 6 x 384 encoder took
# 241 microseconds a token in batches of 1,024, 267 in batches of 4,096 and 299 in batches of 8,192).
DEFAULT_TOKENS = {"cuda": 16_384, "mps": 8_192, "cpu": 2_048}
# Beyond it no device gets faster; and how much of a device's memory a batch may be expected to take.
MOST_TOKENS = 131_072
USED_SHARE = 0.8
# The smaller of two batches that show how memory grows, where a row is no longer than that.
PROBE_TOKENS = 2_048


class Budget:
    """Tokens a batch, padding counted; None for the device's default."""

    def __init__(self, tokens: int | None, teacher: Teacher) -> None:
        self.tokens = tokens or DEFAULT_TOKENS.get(teacher.device.type, DEFAULT_TOKENS["cpu"])

    def __call__(self) -> int:
        return self.tokens

    def shrink(self, failed_tokens: int) -> None:
        """Half of what memory did not hold."""
        self.tokens = max(1, min(self.tokens, failed_tokens // 2))

    def fit(self, teacher: Teacher, manifest: Manifest, longest: TokenizedRow) -> None:
        """Grow to what a CUDA device holds, by the memory that two batches of the longest row take."""
        row_tokens = max(1, len(longest.input_ids))
        usable_bytes = torch.cuda.mem_get_info(teacher.device)[0] + torch.cuda.memory_reserved(teacher.device)

        def peak_bytes(tokens: int) -> int:
            rows = [longest] * (tokens // row_tokens)
            torch.cuda.reset_peak_memory_stats(teacher.device)
            extract(teacher, manifest, batch_of(teacher, rows, range(len(rows))))
            return torch.cuda.max_memory_allocated(teacher.device)

        try:
            self.tokens = largest_batch(peak_bytes, usable_bytes, row_tokens)
        except torch.OutOfMemoryError:
            pass  # then batches are halved as they come
        finally:
            torch.cuda.empty_cache()


def largest_batch(peak_bytes: Callable[[int], int], usable_bytes: int, row_tokens: int) -> int:
    """Tokens whose batch takes `USED_SHARE` of the memory, when what a batch takes grows evenly with its tokens.

    `peak_bytes` is asked about whole rows of `row_tokens` only.
    """
    few = max(1, PROBE_TOKENS // row_tokens) * row_tokens
    more = 2 * few
    least = peak_bytes(few)
    bytes_per_token = max(1.0, (peak_bytes(more) - least) / (more - few))
    room = USED_SHARE * usable_bytes - least
    return int(min(MOST_TOKENS, max(few, few + room / bytes_per_token)))


def extract_within_memory(
    teacher: Teacher, manifest: Manifest, batch: Batch, budget: Budget, say: Callable[[str], None]
) -> Iterator[tuple[Batch, Encoded]]:
    """The batch, or where memory runs out its halves, each with what `extract` gives of it.

    Raises:
        TeacherError: for a row that does not fit by itself.
    """
    encoded = _extract_if_it_fits(teacher, manifest, batch)
    if encoded is not None:
        yield batch, encoded
        return
    if teacher.device.type == "cuda":
        torch.cuda.empty_cache()
    if len(batch.rows) == 1:
        raise TeacherError(
            f"row {batch.numbers[0]}: its {batch.tokens:,} tokens do not fit into the memory of {teacher.device}; use "
            "a smaller --max-length, --dtype bf16, --device-map auto or a larger device."
        )
    budget.shrink(batch.tokens)
    say(f"memory ran out at {batch.tokens:,} tokens a batch; going on with {budget.tokens:,}")
    half = len(batch.rows) // 2
    for part in (slice(half), slice(half, None)):
        smaller = batch_of(teacher, batch.rows[part], batch.numbers[part])
        yield from extract_within_memory(teacher, manifest, smaller, budget, say)


def _extract_if_it_fits(teacher: Teacher, manifest: Manifest, batch: Batch) -> Encoded | None:
    # A function of its own: while an error is handled, its traceback keeps the failed batch's tensors alive.
    try:
        return extract(teacher, manifest, batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA says so by the error's type, other devices in words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
    return any(each in str(error).lower() for each in words)
