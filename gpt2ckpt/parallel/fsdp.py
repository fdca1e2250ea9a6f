"""FSDP2: each rank holds a part of every tensor, and sees a block whole only while it computes it.

What is saved is the whole state, so that a checkpoint is the same file whoever trained it.
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

from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.parallel.ddp import ParallelLoss


def apply_fsdp(model: GPT2, device: torch.device, ranks: int) -> None:
    """Keep a part of each parameter of `model`, which must be equal on all ranks, in place.

    The parameters become others: build the optimizer after this.
    """
    mesh = init_device_mesh(device.type, (ranks,))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss")


def fsdp_loss(model: GPT2) -> ParallelLoss:
    """The loss of a model that was sharded, and the sum of gradients over the ranks."""

    def gradient_sync(last: bool) -> AbstractContextManager[None]:
        cast(FSDPModule, model).set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    return ParallelLoss(model.loss, gradient_sync)


@contextlib.contextmanager
def unsharded_outer_layers(model: nn.Module) -> Iterator[None]:
    """What is used beside the blocks (embeddings, last norm) whole, to generate text."""
    root = cast(FSDPModule, model)
    root.unshard()
    try:
        yield
    finally:
        root.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether `apply_fsdp` was called on `model`."""
    return isinstance(model, FSDPModule)


def gather_full_tensors(value: Any, *, keep: bool) -> Any:
    """`value`, a tree, with every sharded tensor put together on the CPU; for all ranks alike.

    A tensor that stands in two places (tied) is one there, too. Where a rank need not `keep` them,
    there is None instead of each.
    """
    put_together: dict[int, Tensor | None] = {}

    def visit(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: visit(item) for key, item in value.items()}
        if not isinstance(value, DTensor):
            return value
        if id(value) not in put_together:
            full = value.full_tensor().detach()
            put_together[id(value)] = full.cpu() if keep else None
        return put_together[id(value)]

    return visit(value)


def shard_like_model(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """This rank's parts of whole tensors, as the model's own are spread."""
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
