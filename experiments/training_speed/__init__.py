"""Training speed and memory on a CPU, beside a plain reference and transformers."""
