"""Predictions, reports, latency, export and model cards."""
