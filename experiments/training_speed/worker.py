"""One measurement in a process of its own: prints a line of JSON."""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from experiments.training_speed.limit import limit_seconds
from experiments.training_speed.reference import Step, reference_step, transformers_step
from experiments.training_speed.shapes import SHAPES, Shape
from gpt2ckpt.config.schema import AdamWConfig
from gpt2ckpt.data.loader import BlockLoader
from gpt2ckpt.data.tokens import Piece, TokenStream
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.optim.optimizers import build_optimizer
from gpt2ckpt.training.hardware import DTYPES, choose_hardware, prepare_process
from gpt2ckpt.training.state import Counters, TrainingState
from gpt2ckpt.training.step import Stepper

THREADS = 2


def loader_of(shape: Shape) -> BlockLoader:
    """Random tokens: what they are does not change the time."""
    tokens = np.random.default_rng(0).integers(0, shape.model.vocab_size, 200_000, dtype=np.uint16)
    stream = TokenStream([Piece("random", tokens)], shape.model.vocab_size)
    return BlockLoader(stream, shape.model.block_size, seed=0)


def own_step(shape: Shape) -> Callable[[int], float]:
    """The project's own step with its defaults, by the parts that training uses."""
    hardware = choose_hardware("auto", "auto", THREADS)
    prepare_process(hardware, deterministic=True)
    model = GPT2(shape.model)
    optimizer = build_optimizer(AdamWConfig(lr=3e-4), model, hardware.device.type)
    scaler = torch.amp.GradScaler(hardware.device.type, enabled=False)
    state = TrainingState(model, optimizer, scaler, Counters())
    stepper = Stepper(model.loss, loader_of(shape), hardware, shape.batch_size, 1, 1.0)
    return lambda number: stepper.step(state, number * shape.batch_size).loss


def peer_step(variant: str, shape: Shape) -> Callable[[int], float]:
    """A peer's step on batches of the same loader."""
    torch.set_num_threads(THREADS)
    step: Step = {
        "reference": lambda: reference_step(shape.model, compiled=False),
        "reference, compiled": lambda: reference_step(shape.model, compiled=True),
        "transformers": lambda: transformers_step(shape.model, bfloat16=False),
        "transformers, bfloat16": lambda: transformers_step(shape.model, bfloat16=True),
    }[variant]()
    loader = loader_of(shape)
    return lambda number: step(*loader.batch(number * shape.batch_size, shape.batch_size))


def measure(variant: str, shape: Shape) -> dict[str, float]:
    """Tokens per second (median over the timed steps) and memory in bytes."""
    before = peak_bytes()
    step = own_step(shape) if variant == "gpt2ckpt" else peer_step(variant, shape)
    seconds = []
    for number in range(shape.warmup + shape.steps):
        start = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[shape.warmup :])
    return {"tokens_per_s": shape.tokens / median, "peak_bytes": peak_bytes(), "base_bytes": before}


def measure_limit(shape: Shape) -> dict[str, float]:
    """The limit by matrix products, in the precision that gpt2ckpt takes here."""
    hardware = choose_hardware("auto", "auto", THREADS)
    prepare_process(hardware, deterministic=True)
    return {"tokens_per_s": shape.tokens / limit_seconds(shape, DTYPES[hardware.precision])}


def profile(shape: Shape) -> dict[str, float]:
    """Seconds per step of gpt2ckpt by operator, the largest first."""
    step = own_step(shape)
    for number in range(shape.warmup):
        step(number)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for number in range(2):
            step(number)
    averages = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    return {row.key: row.self_cpu_time_total / 2e6 for row in averages[:25]}


def peak_bytes() -> int:
    """The largest resident size that this process ever had (Linux: KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    variant, name = sys.argv[1:3]
    shape = SHAPES[name]
    if variant == "limit":
        result = measure_limit(shape)
    elif variant == "profile":
        result = profile(shape)
    else:
        result = measure(variant, shape)
    print(json.dumps(result))


if __name__ == "__main__":
    assert Path("gpt2ckpt").is_dir(), "run this in the repository's folder"
    main()
