"""Put a shard's rows into batches that fit into memory, and the encoded batches into row groups."""
