"""Stages, the run of one stage, the Trainer, validation, resuming, ranks and the log."""
