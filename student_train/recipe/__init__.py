"""Recipes: a TOML file becomes a frozen, checked description of one student and its training."""
