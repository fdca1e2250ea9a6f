"""Where logged events go: metrics.jsonl, TensorBoard, Weights & Biases."""
