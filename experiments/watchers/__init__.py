"""Measures how much longer a training run takes while a watcher fails."""
