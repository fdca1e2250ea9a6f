"""Measures the cost of checkpoints: stall, time to durable, bytes, memory, reading."""
