"""Sweeps: many runs from one command, each found again when the command is given again."""
