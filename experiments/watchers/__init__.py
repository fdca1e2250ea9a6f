"""Measures how much longer a training takes while a watcher fails."""
