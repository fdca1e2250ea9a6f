"""The verbs of `python -m gpt2ckpt.checkpoints`: one file each, and the small ones they share."""
