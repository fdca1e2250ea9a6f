"""GPT-2: the model, its loss, text generation, and pretrained weights."""
