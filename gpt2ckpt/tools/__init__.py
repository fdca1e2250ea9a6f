"""The subcommands of `python -m gpt2ckpt.checkpoints`, and the modules that they share."""
