"""Checkpoints, from bytes up: format, durable writing, policy, store, manager."""
