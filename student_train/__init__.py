"""Reads a dump and trains students of any shape from it; never loads the teacher."""
