"""Where a student's rows come from, in which order they come, and how they become batches."""
