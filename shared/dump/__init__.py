"""The dump on disk: manifest, signals, codecs, layouts, shards, receipts, verification and inspection."""
