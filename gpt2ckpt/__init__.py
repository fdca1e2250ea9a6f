"""Train GPT-2 from scratch, configured by Hydra, without ever losing a run."""

__version__ = "0.1.0"
