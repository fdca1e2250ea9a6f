"""Runs one measurement in its own process and prints a line of JSON."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from experiments.processes import resident_bytes
from experiments.training_speed.shapes import SHAPES, Shape
from experiments.training_speed.table import LIMIT, OWN
from gpt2ckpt.openmp import set_wait_policy


def build_step(variant: str, shape: Shape) -> Callable[[], float]:
    """Return a function that trains a step of a variant and returns its loss."""
    from experiments.training_speed import own, reference

    if variant == OWN:
        return own.build_step(shape)
    if variant.startswith("reference"):
        return reference.build_step(shape, compiled=variant.endswith("compiled"))
    from experiments.training_speed import peers

    return peers.build_step(shape, best=variant.endswith("bfloat16"))


def measure(variant: str, shape: Shape) -> dict[str, Any]:
    """Return seconds of each timed step, losses of all steps, and memory in bytes."""
    from experiments.training_speed import own

    own.open_loader(own.read_config(shape))  # PyTorch and the tokenizer are no model's memory
    before, losses, seconds = resident_bytes("VmRSS"), [], []
    step = build_step(variant, shape)
    for number in range(shape.warm_up + shape.steps):
        start = time.perf_counter()
        losses.append(step())
        if number >= shape.warm_up:
            seconds.append(time.perf_counter() - start)
    peak = resident_bytes("VmHWM")
    return {"seconds": seconds, "losses": losses, "peak_bytes": peak, "bytes_before": before}


def main() -> None:
    variant, name = sys.argv[1:3]
    shape = SHAPES[name]
    if variant == OWN:
        set_wait_policy()
    if variant == LIMIT:
        from experiments.training_speed import limit

        result: dict[str, Any] = limit.measure(shape)
    elif variant == "profile":
        from experiments.training_speed import hotspots

        result = hotspots.profile(shape)
    elif variant == "memory":
        from experiments.training_speed import memory

        result = memory.accounted_bytes(shape)
    else:
        result = measure(variant, shape)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
