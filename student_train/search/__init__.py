"""Searches: whatever trains many candidates for few steps to choose one of them."""
