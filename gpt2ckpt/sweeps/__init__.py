"""Sweeps: many runs from one command, which finds them again when it is repeated."""
