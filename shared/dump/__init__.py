"""The dump on disk: manifest, codecs, shards, receipts, verification, inspection."""
