"""Models of the transformers library as teachers."""
