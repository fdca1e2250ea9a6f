"""GPT2LMHeadModel of transformers in a plain loop."""

import contextlib
from collections.abc import Callable

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from experiments.training_speed import own
from experiments.training_speed.shapes import THREADS, Shape
from gpt2ckpt.model.huggingface import to_huggingface


def build_step(shape: Shape, *, best: bool) -> Callable[[], float]:
    """Return a function that trains the next step and returns its loss.

    Without `best` it is the documented loop: float32 and torch's AdamW. With `best` it uses what is
    documented as faster: bfloat16 autocast, fused AdamW, and no cache of keys and values. Dropout
    is off, as in the other variants.
    """
    torch.set_num_threads(THREADS)
    config = own.read_config(shape)
    sizes = {"n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.n_embd}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=shape.context, **no_dropout))
    weights, _ = to_huggingface(own.new_model(config).state_dict(), config.model)
    model.load_state_dict(weights, strict=False)  # the tied output layer has no entry of its own
    model.train()
    fused = True if best else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.lr, fused=fused)
    loader, position = own.open_loader(config), 0
    options = {"use_cache": False} if best else {}

    def step() -> float:
        nonlocal position
        tokens, targets = loader.batch(position, shape.batch)
        position += shape.batch
        autocast = torch.autocast("cpu", torch.bfloat16) if best else contextlib.nullcontext()
        with autocast:
            output = model(tokens, labels=targets, shift_labels=targets, **options)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(output.loss.detach())

    return step
