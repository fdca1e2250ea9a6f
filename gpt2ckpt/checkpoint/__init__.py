"""Checkpoints, from bytes up: see docs/architecture.md for the layers."""
