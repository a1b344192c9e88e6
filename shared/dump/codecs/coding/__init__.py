"""How ids and probabilities are encoded as small integers, and decoded."""
