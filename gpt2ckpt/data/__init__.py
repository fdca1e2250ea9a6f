"""Corpora, the tokenizer, token shards, and the loader with its global sample position."""
