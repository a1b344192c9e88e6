"""How ids and probabilities become small whole numbers, and come back."""
