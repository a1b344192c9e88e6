"""Parquet pages without Arrow: checked, and read straight into arrays."""
