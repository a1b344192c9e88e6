"""Corpora (files -> rows) and tasks (a row -> ids, recorded positions, gold labels; predictions -> metrics)."""
