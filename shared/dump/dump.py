"""`Dump`: a dump opened for reading, as polars frames for people and as row groups for trainers."""

from collections.abc import Sequence
from functools import cached_property

import polars as pl
from tokenizers import Tokenizer
from torch import Tensor

from shared.dump.codecs import DistributionCodec
from shared.dump.manifest import Manifest, read_manifest
from shared.dump.parquet.scan import scan_shards
from shared.dump.parquet.tables import shard_schema
from shared.dump.shards import Receipt, read_receipts, shard_path
from shared.dump.signals import Per
from shared.dump.verification import verify
from shared.dump.weights import load_embeddings, load_weights
from shared.errors import DumpError
from shared.storage import Folder, Place


class Dump:
    """A dump, opened for reading.

    Args:
        path: where it is kept: a path of this machine, or a URL that fsspec knows ("s3://bucket/dump").

    Example:
        >>> from shared import Dump
        >>> dump = Dump("out/demo/dump")  # doctest: +SKIP
        >>> dump.positions().filter(pl.col("tail") > -1).head().collect()  # doctest: +SKIP

    Raises:
        DumpError: when the folder holds no dump, a damaged manifest, or one of another format version.
    """

    def __init__(self, path: Place) -> None:
        self.path = Folder.of(path)
        self.manifest: Manifest = load_weights(read_manifest(self.path), self.path)

    @cached_property
    def receipts(self) -> dict[int, Receipt]:
        """The receipts of all committed shards, by shard index."""
        return read_receipts(self.path, self.manifest.shards)

    def require_complete(self) -> None:
        """Raises DumpError where a shard is missing, so that nobody trains on part of a corpus unawares."""
        missing = [index for index in range(self.manifest.shards) if index not in self.receipts]
        if missing:
            names = ", ".join(f"{index:05d}" for index in missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise DumpError(
                f"{self.path}: {len(missing)} of {self.manifest.shards} shards are missing or cut short ({names}); "
                "run the same dump command again to finish them."
            )

    def scan(self) -> pl.LazyFrame:
        """The raw columns, one row a sequence; within a shard the longest come first.

        `scan().filter(pl.col("row") < 10)` finds rows of the corpus by number. Of a dump that is not on this machine a
        frame fetches the columns that it needs, of all shards; `head(n)` alone stops earlier.
        """
        paths = [shard_path(self.path, index) for index in sorted(self.receipts)]
        if not paths:
            raise DumpError(f"{self.path}: no shard is finished yet.")
        return scan_shards(paths, shard_schema(self.manifest))

    def positions(self) -> pl.LazyFrame:
        """One row a recorded position.

        Columns: row, position, token_id, token, label, ids, texts, log_probs, exact, tail, entropy.
        `ids` are the kept candidates, most probable first (all classes in their order for a dense signal, the 64 most
        probable ids for an exact one), `texts` what they say, `log_probs` their log-probabilities, of which the first
        `exact` are known; the others were sampled and this is the log of what they weigh. `tail` is the log of the mass
        outside the exact ones, `entropy` that of the distribution in nats: exact where every logit is known or it was
        kept (`dump --entropy`), a lower bound elsewhere (what is outside counts as one class, or as ids just as
        probable as the threshold where it is sampled). `label` is the gold class or token id. A distribution over a
        whole row has no position and no token. In causal-lm everything after `token` is about the token that follows.

        Columns that are not selected cost nothing, and a dump larger than memory streams:
        `dump.positions().select("row", "entropy").sink_parquet(...)`.

        A dump of questions has two distributions a row, over its positions: its columns are row, question, position,
        token_id, token, label (1 where the gold answer starts, 2 where it ends, 3 for both, else 0), start_logit,
        end_logit, start_log_prob and end_log_prob.

        Raises:
            DumpError: when no distribution is recorded.
        """
        return self.manifest.layout.positions(self)

    def vectors(self, name: str) -> pl.LazyFrame:
        """The vectors of signal `name` ("hidden.6"): row, position, vector (list of float32). One row a token; of a
        signal that is recorded at the recorded positions alone, or once a row, one for each of those (without a
        position, where it is about the whole row).

        Raises:
            DumpError: when there is no such signal, naming those there are.
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
        """The teacher's input word embeddings [V, D], float16, read from the disk at each call.

        Raises:
            DumpError: when the dump keeps none (`dump --embeddings`), or their file is missing or damaged.
        """
        return load_embeddings(self.manifest, self.path)

    def verify(self) -> list[str]:
        """Every damage as a sentence that names the file; empty when every byte is as it was written."""
        return verify(self.path, self.manifest)

    @property
    def distribution(self) -> DistributionCodec:
        """The codec of the distribution. Raises DumpError when none is recorded."""
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
        """What each class of a distribution is called: label names, or the texts of the tokens."""
        return self.manifest.label_names or self.token_texts

    @cached_property
    def token_texts(self) -> list[str]:
        """The text of each token id of the tokenizer; ids beyond it (padding of the head) are absent."""
        tokenizer = Tokenizer.from_buffer((self.path / "tokenizer" / "tokenizer.json").read_bytes())
        pieces = {index: piece for piece, index in tokenizer.get_vocab(with_added_tokens=True).items()}
        texts = []
        for index in range(max(pieces) + 1):
            text = tokenizer.decode([index], skip_special_tokens=False)
            # Part of a multi-byte character has no text of its own; its byte-level name is clearer than a box.
            texts.append(text if text and "\ufffd" not in text else pieces.get(index, f"<{index}>"))
        return texts
