"""The forward pass of a student: its outputs, the targets beside them, and how both are computed in slices."""
