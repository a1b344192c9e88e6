"""Corpora (from files to rows) and tasks (from rows to ids, positions and gold labels; from predictions to metrics)."""
