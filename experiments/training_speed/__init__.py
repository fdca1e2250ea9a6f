"""Measures training speed and memory on a CPU beside a reference and transformers."""
