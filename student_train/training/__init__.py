"""Training: stages, the training plan, the run of a stage, the Trainer, validation, resuming, ranks and the log."""
