"""Loss functions: a base, one file a family, formulas beside them, and their weighted sum."""
