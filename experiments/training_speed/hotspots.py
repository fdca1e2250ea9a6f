"""Measures where the time of a step goes, by grouping the operators of torch.profiler."""

from collections import defaultdict

import torch
from torch.autograd.profiler_util import FunctionEvent

from experiments.training_speed import own
from experiments.training_speed.shapes import Shape

LOSS = "_LinearCrossEntropy"
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_")
# The first group with a name that occurs in the operator's name.
GROUPS = {
    "attention": ("bmm", "scaled_dot_product", "_softmax", "triu"),
    "layer norm": ("native_layer_norm",),
    "GELU": ("gelu",),
    "optimizer": ("_fused_adamw", "Optimizer."),
    "gradient clipping": ("linalg_vector_norm", "_foreach", "clamp"),
    "embedding": ("embedding", "index_select"),
    "copies, casts": ("copy_", "_to_copy", "aten::clone", "aten::contiguous"),
    "residual sums, bias gradients": ("aten::add", "aten::sum"),
}


def profile(shape: Shape, steps: int = 3) -> dict[str, float]:
    """Return seconds per step by group, largest first, including some profiling overhead."""
    step = own.build_step(shape)
    for _ in range(shape.warm_up):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        seconds[group_of(event)] += event.self_cpu_time_total / 1e6 / steps
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def group_of(event: FunctionEvent) -> str:
    """Return the group of an operator; a nested operator counts as the outer one."""
    chain = [event.name]
    parent = event.cpu_parent
    while parent is not None:
        chain.append(parent.name)
        parent = parent.cpu_parent
    in_loss = any(LOSS in name for name in chain)
    if event.name in PRODUCTS:
        return "matrix products, output layer" if in_loss else "matrix products, blocks"
    if in_loss:
        return "softmax and cross entropy"
    for group, names in GROUPS.items():
        if any(part in name for name in chain for part in names):
            return group
    return "everything else"
