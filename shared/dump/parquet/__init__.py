"""Parquet files of a dump: tables and their schema, and a fast reader of pages that verifies checksums."""
