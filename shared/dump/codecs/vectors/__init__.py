"""Codecs of vectors: quantized, low-rank, and what fits them to a sample."""
