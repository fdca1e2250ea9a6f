"""FSDP2: each rank holds a shard of every tensor, and gathers a layer only to compute it.

Checkpoints hold full tensors, so they do not depend on FSDP or on the number of ranks.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from gpt2ckpt.layers import repeated_layers
from gpt2ckpt.model.build import LossFunction
from gpt2ckpt.parallel.ddp import ParallelLoss


def apply_fsdp(model: nn.Module, device: torch.device, ranks: int) -> None:
    """Shard the parameters of `model` in place; their values must be equal on all ranks.

    Each repeated layer is gathered by itself, and the rest of the model together. The parameters
    are replaced, so the optimizer must be built afterwards.
    """
    mesh = init_device_mesh(device.type, (ranks,))
    for layer in repeated_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if hasattr(model, "loss"):
        register_fsdp_forward_method(model, "loss")


def fsdp_loss(model: nn.Module, loss: LossFunction) -> ParallelLoss:
    """Return the loss function of a sharded model."""

    def gradient_sync(last: bool) -> AbstractContextManager[None]:
        cast(FSDPModule, model).set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    return ParallelLoss(loss, gradient_sync)


@contextlib.contextmanager
def unsharded_outer_layers(model: nn.Module) -> Iterator[None]:
    """Gather the embeddings and the last norm in this context, to generate text.

    Generation uses these layers outside the forward pass, for which FSDP would gather them.
    """
    root = cast(FSDPModule, model)
    root.unshard()
    try:
        yield
    finally:
        root.reshard()


def gather_full_tensors(value: Any, *, keep: bool) -> Any:
    """Return a tree of dicts with all sharded tensors gathered on the CPU. All ranks must call it.

    Args:
        value: The tree. A tied tensor, which occurs twice, is gathered once and stays tied.
        keep: Whether this rank needs the tensors. If not, its result has None for each tensor.
    """
    gathered: dict[int, Tensor | None] = {}

    def visit(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: visit(item) for key, item in value.items()}
        if not isinstance(value, DTensor):
            return value
        if id(value) not in gathered:
            full = value.full_tensor().detach()
            gathered[id(value)] = full.cpu() if keep else None
        return gathered[id(value)]

    return visit(value)


def shard_like_model(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Shard full tensors like the parameters of `model`, and return the shards of this rank."""
    own = model.state_dict()
    return {
        name: distribute_tensor(
            tensor.to(own[name].device),
            own[name].device_mesh,
            own[name].placements,
            src_data_rank=None,
        )
        if isinstance(own.get(name), DTensor) and own[name].shape == tensor.shape
        else tensor
        for name, tensor in tensors.items()
    }
