"""Computes the memory of a training step of gpt2ckpt from the shapes."""

from experiments.training_speed import own
from experiments.training_speed.shapes import Shape
from gpt2ckpt.model.attention import MAX_KEPT_LENGTH
from gpt2ckpt.model.counts import count_parameters
from gpt2ckpt.model.loss import CHUNK_ROWS_CPU, SOFTMAX_ROWS_CPU

FLOAT, HALF = 4, 2  # bytes


def accounted_bytes(shape: Shape) -> dict[str, int]:
    """Return the bytes by part, under bfloat16 autocast if the CPU supports it.

    A block stores for its backward pass, per token and in units of its width C: in float32 the
    inputs of its two norms (2 C); in the dtype of the products the outputs of the norms (2 C),
    queries, keys and values (3 C), the output of attention (C), and the hidden layer before and
    after GELU (8 C); for short blocks also the attention weights. Autocast stores copies of the
    weights. One chunk of the logits is stored, with a few rows in float32.
    """
    config = own.read_config(shape)
    counts, tokens, width = count_parameters(config.model), shape.tokens, shape.n_embd
    is_bfloat16 = own.choose(config).precision == "bfloat16"
    size = HALF if is_bfloat16 else FLOAT
    per_token = width * (2 * FLOAT + (2 + 3 + 1 + 8) * size)
    if is_bfloat16 and shape.context <= MAX_KEPT_LENGTH:
        per_token += shape.n_head * shape.context * size
    ends = 3 * width * FLOAT  # around the blocks: the last norm, and the loss's own gradient
    rows = min(tokens, CHUNK_ROWS_CPU)
    softmax = min(rows, SOFTMAX_ROWS_CPU) * FLOAT if is_bfloat16 else 0
    copies = counts.attention + counts.mlp + counts.embedding if is_bfloat16 else 0
    return {
        "weights": counts.total * FLOAT,
        "gradients": counts.total * FLOAT,
        "Adam's two moments": 2 * counts.total * FLOAT,
        "activations": tokens * (shape.n_layer * per_token + ends),
        "copies of the weights in 16 bits": copies * HALF,
        "one chunk of logits": config.model.vocab_size * (rows * size + softmax),
    }
