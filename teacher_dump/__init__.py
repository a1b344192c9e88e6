"""The annotator: corpus -> tokens -> batches -> teacher forward -> signals -> shards."""
