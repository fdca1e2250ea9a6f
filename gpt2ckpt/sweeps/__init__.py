"""Sweeps: one command starts many runs, and resumes them when it is repeated."""
