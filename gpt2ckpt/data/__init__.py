"""Corpora, the tokenizer, token shards, the data order and the loader."""
