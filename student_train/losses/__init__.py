"""Loss functions: a base, one file per family, their formulas, and their weighted sum."""
