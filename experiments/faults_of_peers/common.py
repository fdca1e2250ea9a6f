"""The parts that all trainers of the comparison share: model, data, settings, command line.

Each trainer is a program `python -m experiments.faults_of_peers.NAME DIR [--lr X] [--resume]` that
trains the same small GPT-2 on the same tokens in DIR, saves every SAVE_EVERY steps, appends a line
`STEP LOSS` to DIR/losses.txt after each step (then waits for --pause seconds), and with --resume
resumes as the documentation of the tool recommends. At the end it writes DIR/final.pt, the state
dict of the model.
"""

import argparse
import contextlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

STEPS, SAVE_EVERY, BATCH, BLOCK, VOCABULARY = 60, 5, 4, 32, 64
LR = 1e-3
SEED = 1337


@dataclass(frozen=True)
class Settings:
    """The arguments of a trainer; `pause` is in seconds after each step."""

    directory: Path
    lr: float
    resume: bool
    pause: float


def settings() -> Settings:
    """Parse the arguments and make the training deterministic."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--pause", type=float, default=0)
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    return Settings(args.directory.resolve(), args.lr, args.resume, args.pause)


def make_tokens(path: Path) -> None:
    """Write a random walk over 64 tokens, uint16; an epoch is 80 steps."""
    import numpy as np

    walk = np.cumsum(np.random.default_rng(0).integers(-2, 3, 80 * BATCH * BLOCK + 1)) % VOCABULARY
    walk.astype("<u2").tofile(path)


def blocks(path: Path) -> "list[tuple[object, object]]":
    """Return inputs and targets of every block, int64 tensors."""
    import numpy as np
    import torch

    tokens = torch.from_numpy(np.fromfile(path, dtype="<u2").astype(np.int64))
    count = (len(tokens) - 1) // BLOCK
    return [
        (tokens[i * BLOCK : (i + 1) * BLOCK], tokens[i * BLOCK + 1 : (i + 1) * BLOCK + 1])
        for i in range(count)
    ]


def build_model() -> "object":
    """Return a GPT-2 of transformers with 2 layers of width 32 and dropout."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=BLOCK,
        n_layer=2,
        n_head=2,
        n_embd=32,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def note(given: Settings, step: int, loss: float) -> None:
    """Append a step to losses.txt; ignore a full disk, which is not the trainer's fault."""
    with contextlib.suppress(OSError), (given.directory / "losses.txt").open("a") as file:
        file.write(f"{step} {loss!r}\n")
    time.sleep(given.pause)  # lets a tool that takes seconds over a signal still meet a training


def finish(directory: Path, weights: object) -> None:
    """Write the final weights for the study."""
    import torch

    with contextlib.suppress(OSError, RuntimeError):
        torch.save(weights, directory / "final.pt")


def quiet() -> None:
    """Disable progress bars, network and telemetry."""
    os.environ.update(
        HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false"
    )
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
