"""`python -m experiments.faults_of_peers.run`: the same faults for every trainer, as a table."""

import argparse
import importlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from experiments.faults_of_peers.battery import Battery
from experiments.faults_of_peers.peers import PEERS
from experiments.report import grid

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "lightning", "transformers", "accelerate", "gpt2ckpt")


def main() -> None:
    """Run all trainers, each in its own process; or one, printing its results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[peer.module for peer in PEERS])
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(_one(args.only, args.seed)))
        return
    found = {}
    for peer in PEERS:
        args = [sys.executable, "-m", "experiments.faults_of_peers.run", "--only", peer.module]
        done = subprocess.run(
            [*args, "--seed", str(args.seed)], stdout=subprocess.PIPE, text=True, check=True
        )
        *lines, last = done.stdout.splitlines()
        print("\n".join(lines), flush=True)
        found[peer.name] = json.loads(last)
    _write(found, args.seed)


def _one(module: str, seed: int) -> dict[str, str]:
    peer = next(peer for peer in PEERS if peer.module == module)
    torch.set_num_threads(1)  # more would not survive a fork
    for name in peer.preload:
        importlib.import_module(name)
    folder = Path(tempfile.mkdtemp(prefix=f"faults_{module}_"))
    try:
        return Battery(peer, folder / "work", seed).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(found: dict[str, dict[str, str]], seed: int) -> None:
    rows = [
        [fault, *(found[name][fault] for name in found)] for fault in next(iter(found.values()))
    ]
    table = grid(["", *found], rows)
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    head = (
        f"`python -m experiments.faults_of_peers.run --seed {seed}`, {date.today()}\n\n"
        f"{versions}; Python {platform.python_version()}, {platform.system()}\n"
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "table.md").write_text(f"{head}\n{table}\n")
    print(table)


if __name__ == "__main__":
    main()
