"""All random generators are captured and restored, also through a checkpoint file."""

import io
import random

import numpy as np
import torch
from training_helpers import differing

from gpt2ckpt.checkpoint import format
from gpt2ckpt.checkpoint.state import RngState
from gpt2ckpt.training.rng import capture_generators, restore_generators, seed_everything


def draw() -> list[object]:
    """Draw random numbers of each kind that training could use."""
    return [
        *(random.random(), random.gauss(0, 1), random.getrandbits(70)),
        *(
            np.random.rand(3).tolist(),
            np.random.standard_normal(),
            np.random.permutation(9).tolist(),
        ),
        *(torch.rand(5).tolist(), torch.randn(3).tolist(), torch.randperm(9).tolist()),
        torch.nn.functional.dropout(torch.ones(64)).tolist(),
    ]


def test_restored_generators_repeat_their_draws() -> None:
    seed_everything(5)
    random.gauss(0, 1)  # leaves one number of a pair of normal numbers in the state
    np.random.standard_normal()
    torch.randn(1)
    saved = capture_generators()
    first = draw()
    draw()
    restore_generators(saved)
    assert draw() == first
    restore_generators(saved)
    assert draw() == first  # and the captured state did not change with the live one


def test_checkpoint_holds_generators_bitwise() -> None:
    seed_everything(6)
    random.gauss(0, 1)
    saved = capture_generators()
    encoded = format.encode({"format": format.FORMAT, "rng": vars(saved)})
    read = RngState(**format.load(io.BytesIO(b"".join(encoded.buffers)))["rng"])
    assert differing(saved, read) == []
    first = draw()
    restore_generators(read)
    assert draw() == first


def test_seed_determines_all_generators() -> None:
    seed_everything(2**40 + 1)
    first = draw()
    seed_everything(2**40 + 1)
    assert draw() == first
    seed_everything(2)
    assert not any(a == b for a, b in zip(draw(), first, strict=True))
