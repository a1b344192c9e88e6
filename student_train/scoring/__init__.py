"""Scores of finished models: predictions, agreement, latency, reports and model cards; export to ONNX."""
