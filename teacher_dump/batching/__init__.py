"""A shard's rows as batches of as many tokens as memory holds, and what comes of these as row groups."""
