"""Codecs for vectors, quantized and of low rank, and how they are fitted to a sample."""
