"""`distill compare`: models that were scored on several tasks, in one table."""
