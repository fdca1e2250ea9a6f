"""Seeds, captures and restores the random generators of Python, NumPy and PyTorch."""

import random

import numpy as np
import torch
import xxhash

from gpt2ckpt.checkpoint.state import RngState


def seed_rank(seed: int, rank: int, step: int) -> None:
    """Seed a rank other than the first before the step that follows `step` steps.

    The seed depends only on the arguments, so a checkpoint does not hold the generators of these
    ranks, and can be saved even if a rank has died.
    """
    digest = xxhash.xxh3_64_digest(f"{seed}/{rank}/{step}".encode())
    seed_everything(int.from_bytes(digest, "big") >> 1)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_generators() -> RngState:
    """Return the states of all generators; with several GPUs, only that of the GPU in use."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return RngState(
        python=[version, list(internal), gauss],
        numpy=[
            str(name),
            torch.from_numpy(np.array(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        mps=torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    )


def restore_generators(state: RngState) -> None:
    """Restore the states of all generators, that of a GPU only if this machine has one."""
    version, internal, gauss = state.python
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state.numpy
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state.torch)
    if torch.cuda.is_available() and isinstance(state.cuda, torch.Tensor):
        torch.cuda.set_rng_state(state.cuda)
    if torch.backends.mps.is_available() and isinstance(state.mps, torch.Tensor):
        torch.mps.set_rng_state(state.mps)
