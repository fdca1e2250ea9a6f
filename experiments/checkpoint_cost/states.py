"""The saved states: a GPT-2 with its AdamW state after one step."""

from typing import Any

import torch

from gpt2ckpt.config.schema import AdamWConfig, ModelConfig
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.optim.optimizers import build_optimizer

MODELS = {
    "30 MB": ModelConfig(n_layer=4, n_head=4, n_embd=48, block_size=128),
    "300 MB": ModelConfig(n_layer=6, n_head=6, n_embd=336, block_size=256),
    "124M": ModelConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024),
}


def build_state(name: str) -> dict[str, Any]:
    """Return a state as a training run captures it, with random values and live tensors."""
    torch.manual_seed(0)
    model = GPT2(MODELS[name])
    optimizer = build_optimizer(AdamWConfig(), model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return {
        **{"format": "gpt2ckpt/1", "step": 0, "epoch": 0, "tokens_seen": 0},
        **{"train_loss": 1.0, "val_loss": None, "best_val_loss": None},
        "reason": "regular",
        "saved_at": "2026-01-01T00:00:00.000+00:00",
        "run": {"id": "0" * 8, "name": "cost", "parent": None},
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def change(state: dict[str, Any]) -> None:
    """Change every parameter and its moments in place, as a step does."""
    with torch.no_grad():
        for tensor in tensors(state).values():
            tensor.add_(1e-4)


def tensors(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return every distinct tensor of the state by dotted name."""
    flat = {f"model.{name}": tensor for name, tensor in state["model"].items()}
    flat.pop("model.lm_head.weight", None)  # tied to the token embedding
    for name, kinds in state["optimizer"]["state"].items():
        flat.update({f"optimizer.{name}.{kind}": tensor for kind, tensor in kinds.items()})
    return flat


def size_of(state: dict[str, Any]) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.nbytes for tensor in tensors(state).values())
