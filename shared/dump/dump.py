"""`Dump`: a dump that is opened for reading, as polars frames."""

from collections.abc import Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any

import polars as pl
from tokenizers import Tokenizer
from torch import Tensor

from shared.dump.codecs import DistributionCodec
from shared.dump.integrity.checksums import TOKENIZER, check
from shared.dump.integrity.receipts import Receipt, read_receipts, receipt_path, shard_numbers, shard_path
from shared.dump.integrity.verification import verify
from shared.dump.manifest import Manifest, read_manifest
from shared.dump.parquet.contents import check_table
from shared.dump.parquet.scan import scan_shards
from shared.dump.parquet.tables import shard_schema
from shared.dump.signals import Per
from shared.dump.weights.files import load_tensors, load_weights
from shared.dump.weights.projections import Projections, from_file
from shared.dump.weights.tensor_file import ATTENTION, EMBEDDINGS, IMPORTANCE, TEACHER
from shared.errors import DumpError
from shared.storage import Folder, Place

# The fewest bytes of an entry in a tokenizer's file.
_ENTRY_BYTES = 4


class Dump:
    """A dump that is opened for reading.

    Args:
        path: location of the dump: a path on this machine, or a URL that fsspec knows ("s3://bucket/dump").

    Example:
        >>> from shared import Dump
        >>> dump = Dump("out/demo/dump")
        >>> dump.manifest.label_names
        ('negative', 'neutral', 'positive')
        >>> unsure = dump.positions().filter(pl.col("entropy") > 1).select("row", "label", "log_probs")
        >>> unsure.collect().columns
        ['row', 'label', 'log_probs']

    Raises:
        DumpError: if the folder has no dump, a format version that cannot be read, or a manifest, a file of the
            tokenizer or constants of a codec that are not as they were written.
    """

    def __init__(self, path: Place) -> None:
        self.path = Folder.of(path)
        manifest = read_manifest(self.path)
        check(self.path, manifest.format_version, (TOKENIZER,))
        _check_size(self._tokenizer_file, manifest)
        self.manifest: Manifest = load_weights(manifest, self.path)

    @cached_property
    def receipts(self) -> dict[int, Receipt]:
        """The receipts of all committed shards, by shard index.

        Raises:
            DumpError: for a damaged receipt, or one that belongs elsewhere, with the file's name.
        """
        receipts = read_receipts(self.path, self.manifest.shards, self.manifest.identity)
        for index, receipt in receipts.items():
            rows = len(self.manifest.rows_of_shard(index))
            if receipt.rows != rows or sum(receipt.row_groups) != rows:
                raise DumpError(
                    f"{receipt_path(self.path, index)}: this receipt is of {receipt.rows:,} rows, but by the manifest "
                    f"the shard has {rows:,}; restore the manifest, or delete the shard and dump again."
                )
        beyond = [index for index in shard_numbers(self.path) if index >= self.manifest.shards]
        if beyond:
            raise DumpError(
                f"{shard_path(self.path, beyond[0])}: by the manifest the dump has only {self.manifest.shards:,} "
                "shards; restore the manifest, or move the file away."
            )
        return receipts

    def require_complete(self) -> None:
        """Raise DumpError if a shard is missing, so that nobody trains on part of a corpus without knowing it."""
        missing = self.manifest.shards - len(self.receipts)
        if missing:
            first = islice((index for index in range(self.manifest.shards) if index not in self.receipts), 5)
            names = ", ".join(f"{index:05d}" for index in first) + (", ..." if missing > 5 else "")
            raise DumpError(
                f"{self.path}: {missing:,} of {self.manifest.shards:,} shards are missing or unfinished ({names}); "
                "run the same dump command again to finish them."
            )

    def scan(self) -> pl.LazyFrame:
        """Return the raw columns, with one row per sequence; within a shard the longest sequences come first.

        `scan().filter(pl.col("row") < 10)` finds rows of the corpus by number, without opening files of other rows;
        `head(n)` stops early, and only the columns that are needed are read. Every page that is read is checked, as a
        trainer does.

        Raises:
            DumpError: if no shard is finished, or for a damaged receipt; when the frame is collected, for a shard that
                is damaged or belongs elsewhere.
        """
        shards = [
            (shard_path(self.path, index), receipt, self.manifest.rows_of_shard(index))
            for index, receipt in sorted(self.receipts.items())
        ]
        if not shards:
            raise DumpError(f"{self.path}: no shard is finished yet.")
        return scan_shards(shards, shard_schema(self.manifest), partial(check_table, self.manifest))

    def positions(self) -> pl.LazyFrame:
        """Return one row per recorded position.

        Its columns are row, position, token_id, token, label, ids, texts, log_probs, exact, tail and entropy:

        - `label` is the gold class or token id.
        - `ids` are the kept candidates, most probable first (for a dense signal all classes in their order, for an
          exact one the 64 most probable ids), `texts` their names, and `log_probs` their log-probabilities.
        - `exact` is how many of these, from the first on, are exact; the others are sampled, and their `log_probs` are
          the logs of their weights. `tail` is the log of the mass outside the exact ones.
        - `entropy` is that of the distribution in nats. It is exact if every logit is known or the entropy was recorded
          (`dump --entropy`), else a lower bound (the tail counts as one class, or, if it is sampled, as ids with the
          probability of the threshold).

        A distribution over a whole row has no position and no token. In causal-lm, all columns after `token` refer to
        the next token. A dump of questions has two distributions per row, over its positions. Its columns are row,
        question, position, token_id, token, label (1 at the start of the gold answer, 2 at its end, 3 for both, else
        0), start_logit, end_logit, start_log_prob and end_log_prob.

        Columns that are not selected cost nothing, and a dump larger than memory can be streamed:
        `dump.positions().select("row", "entropy").sink_parquet(...)`.

        Raises:
            DumpError: if no distribution is recorded.
        """
        return self.manifest.layout.positions(self)

    def mixtures(self) -> pl.LazyFrame:
        """Return one row per mixture of rows (`dump --mixup`): row, draw, partner, lambda and logits.

        In draw `draw` (from 0) the teacher read `lambda` times the word embeddings of `row` and 1 - `lambda` times
        those of the row `partner`; `logits` is a list of float32, one for each class.

        Raises:
            DumpError: if no mixtures are recorded.
        """
        if self.manifest.mixtures is None:
            raise DumpError(f"{self.path}: this dump has no mixtures of rows; dump again with --mixup.")
        return self.manifest.mixtures.per_draw(self.scan())

    def vectors(self, name: str) -> pl.LazyFrame:
        """Return the vectors of signal `name` ("hidden.6") as columns row, position and vector (list of float32).

        There is one row per token; or one per recorded position or per row of the corpus, if the signal is recorded per
        position or per row. Vectors of whole rows have no position.

        Raises:
            DumpError: if there is no such signal; the message lists those that exist.
        """
        if name not in self.manifest.vectors:
            have = ", ".join(self.manifest.vectors) or "none at all"
            raise DumpError(f"{self.path}: no vectors named {name!r} in this dump; it has {have}.")
        codec = self.manifest.vectors[name]
        raw = [column.name for column in codec.columns]
        length = pl.col("input_ids").list.len().cast(pl.Int64)
        positions: dict[Per, pl.Expr | None] = {
            "token": pl.int_ranges(0, length, dtype=pl.Int32),
            "position": self.manifest.layout.per_position(self.labelled).get("position"),
            "row": None,
        }
        position = positions[self.manifest.per_column[raw[0]]]
        known = {} if position is None else {"position": position}
        frame = (
            self.scan()
            .select("row", *raw, **known)
            .filter(pl.col(raw[0]).list.len() > 0)
            .explode(*raw, *known)
            .with_columns(vector=codec.vector_expr())
        )
        if position is None:
            frame = frame.with_columns(position=pl.lit(None, dtype=pl.Int32))
        return frame.select("row", "position", "vector")

    def word_embeddings(self) -> Tensor:
        """Return the teacher's input word embeddings [V, D], float16; each call reads them from the disk.

        Raises:
            DumpError: if the dump has none (`dump --embeddings`), or if their file is missing or damaged.
        """
        return self.tensors(EMBEDDINGS)[EMBEDDINGS]

    def teacher_weights(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return (the teacher's configuration, its weights under the names of its state dict).

        Weights that are the same tensor (tied embeddings) are there once, under one of their names, as in the teacher's
        own file. Each call reads them from the disk.

        Example:
            >>> from shared import Dump
            >>> from transformers import AutoConfig, AutoModelForSequenceClassification
            >>> config, weights = Dump("out/demo/dump").teacher_weights()
            >>> model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**config))
            >>> model.load_state_dict(weights)
            <All keys matched successfully>

        Raises:
            DumpError: if the dump has none (`dump --teacher-weights`), or if their file is missing or damaged.
        """
        weights = self.tensors(TEACHER)
        return dict(self.manifest.tensor_files[TEACHER].facts["config"]), weights

    def importance(self) -> dict[str, Tensor]:
        """Return the first-order importance of the teacher's parts, float32: `heads` [layers, heads], `neurons`
        [layers, neurons of a feed-forward network] and `residual` [width].

        Raises:
            DumpError: if the dump has none (`dump --importance`), or if their file is missing or damaged.
        """
        return self.tensors(IMPORTANCE)

    def attention_projections(self) -> dict[int, Projections]:
        """Return, by layer, how queries, keys and values are computed from the vectors `attention_inputs` of the layer.

        Each call reads them from the disk.

        Raises:
            DumpError: if the dump has none (`dump --attention-inputs`), or if their file is missing or damaged.
        """
        tensors = self.tensors(ATTENTION)
        return from_file(tensors, self.manifest.tensor_files[ATTENTION].facts)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of the file in `weights/` of this name, an entry of the table `TENSOR_FILES`.

        Raises:
            DumpError: if the dump has none, or if the file is missing, damaged, or not the one of the manifest.
        """
        return load_tensors(self.manifest, self.path, name)

    def verify(self) -> list[str]:
        """Return one sentence for each damage, with the file's name; empty if every byte is as it was written."""
        return verify(self.path)

    @property
    def distribution(self) -> DistributionCodec:
        """The codec of the distribution. Raises DumpError if none is recorded."""
        if self.manifest.distribution is None:
            raise DumpError(
                f"{self.path}: no distribution is recorded in this dump (its task is {self.manifest.task})."
            )
        return self.manifest.distribution

    @property
    def labelled(self) -> bool:
        """Whether any row has gold labels."""
        return self.manifest.labelled

    @property
    def class_texts(self) -> Sequence[str]:
        """The name of each class of a distribution: label names, or the texts of the tokens."""
        return self.manifest.label_names or self.token_texts

    @cached_property
    def token_texts(self) -> list[str]:
        """The text of each token id of the tokenizer; ids above those (padding of the head) have none."""
        path = self._tokenizer_file
        try:
            tokenizer = Tokenizer.from_buffer(path.read_bytes())
        except Exception as error:  # tokenizers raises nothing more special
            raise DumpError(f"{path}: cannot be read ({error}); restore it or dump again.") from None
        pieces = {index: piece for piece, index in tokenizer.get_vocab(with_added_tokens=True).items()}
        texts = []
        # Ids beyond the vocabulary occur nowhere, and may be as large as the file claims.
        for index in range(min(max(pieces, default=-1) + 1, self.manifest.vocabulary)):
            text = tokenizer.decode([index], skip_special_tokens=False)
            # Part of a multi-byte character has no text of its own; its byte-level name is clearer than a replacement
            # character.
            texts.append(text if text and "\ufffd" not in text else pieces.get(index, f"<{index}>"))
        return texts

    @property
    def _tokenizer_file(self) -> Folder:
        return self.path / TOKENIZER / "tokenizer.json"


def _check_size(tokenizer: Folder, manifest: Manifest) -> None:
    """Check that the file of a tokenizer can have as many entries as the manifest says. Raises DumpError."""
    try:
        size = tokenizer.size()
    except OSError as error:
        raise DumpError(f"{tokenizer}: cannot be read ({error.strerror or error}); restore it or dump again.") from None
    if manifest.tokenizer.size * _ENTRY_BYTES > size:
        raise DumpError(
            f"{tokenizer}: {size:,} bytes are too few for the {manifest.tokenizer.size:,} entries of the manifest; "
            "restore the file that is wrong."
        )
