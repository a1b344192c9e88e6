"""Recipes: TOML -> a frozen, checked description of one student and how it learns."""
