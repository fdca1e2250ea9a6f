"""Signals: before, during and after a training, and in sweeps."""
