"""What a training step of gpt2ckpt must hold at its peak, added up from the shapes."""

from experiments.training_speed.shapes import Shape
from gpt2ckpt.model.counts import count_parameters
from gpt2ckpt.model.loss import CHUNK_ROWS_CPU

FLOAT, HALF, INDEX = 4, 2, 8  # bytes


def accounted_bytes(shape: Shape) -> int:
    """Weights, gradients, Adam's two moments, activations kept for the backward pass, one chunk
    of logits, and the output layer's second gradient (it is added to that of the embedding).

    Under bfloat16 autocast a block keeps, per token: its residual stream twice, the inputs of its
    two norms in float32 (4 C), and in bfloat16 the norms' outputs (2 C), queries, keys and values
    (3 C), what attention mixed (C), the hidden layer before and after GELU (8 C), and the copies
    in bfloat16 of its weights.
    """
    model, tokens = shape.model, shape.tokens
    counts, width = count_parameters(model), model.n_embd
    state = counts.total * 4 * FLOAT
    per_token = model.n_layer * width * (4 * FLOAT + (2 + 3 + 1 + 8) * HALF)
    casts = (counts.attention + counts.mlp + counts.embedding) * HALF
    logits = min(tokens, CHUNK_ROWS_CPU) * model.vocab_size * HALF
    return state + tokens * per_token + casts + logits + counts.embedding * FLOAT
