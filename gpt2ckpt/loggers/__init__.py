"""Loggers: metrics.jsonl, train.log, TensorBoard, Weights & Biases."""
