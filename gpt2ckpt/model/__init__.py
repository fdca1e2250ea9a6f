"""GPT-2: the model, its loss, text from it, and weights that others trained."""
