"""Training data: sources of rows, subsets of them, their order, and batches."""
