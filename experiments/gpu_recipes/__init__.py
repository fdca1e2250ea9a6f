"""The tokens, hours and memory that the recipes for one GPU need."""
