"""Saves while system calls fail: the program that test_failing_storage.py runs.

Prints one JSON object per scenario. In the last scenario, the disk hangs forever, and the process
must still end.
"""

import errno
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from checkpoint_helpers import request, small_state
from preload import Faults

from gpt2ckpt.checkpoint.manager import CheckpointManager, SavingOptions
from gpt2ckpt.checkpoint.reading import check
from gpt2ckpt.checkpoint.retention import Retention
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError

KEEP = Retention(4, 4)
HANG = 1.0  # seconds that count as one here
CALLS = {  # what fails, on which path
    "write": ".tmp",
    "fsync": ".tmp",
    "read": ".tmp",
    "rename": "rolling_step",
    "open": ".tmp",
    "fsync of the folder": "checkpoints$",
    "link": "latest",
    "unlink": "rolling_step",
}

heard: list[str] = []


class Ear(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        heard.append(record.getMessage())


def tell(scene: str, **facts: Any) -> None:
    print(json.dumps({"scene": scene, "heard": list(heard), **facts}), flush=True)
    heard.clear()


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in sorted(folder.iterdir())}


def are_valid(folder: Path) -> bool:
    try:
        for path in Store(folder).files():
            check(path)
    except CheckpointError:
        return False
    return True


def fail_each_call(folder: Path, faults: Faults) -> None:
    manager = CheckpointManager(folder, KEEP, None)
    step = 0
    for name, pattern in CALLS.items():
        for _ in range(5):  # enough that the pool is full, and something is deleted
            step += 1
            assert manager.save(small_state(step), request(step)) is not None
        heard.clear()
        before = files(folder)
        faults.set((name.split()[0], errno.EIO, pattern))
        saved = manager.save(small_state(step + 1), request(step + 1))
        faults.set()
        after, valid = files(folder), are_valid(folder)
        step += 1
        again = manager.save(small_state(step), request(step)) is not None
        tell(
            *(name,),
            saved=saved is not None,
            kept=before.items() <= after.items(),
            left=sorted(set(after) - set(before)),
            valid=valid,
            again=again,
        )
    manager.close()


def go_without_links_and_folder_sync(folder: Path, faults: Faults) -> None:
    faults.set(("link", errno.EPERM, "bare"), ("fsync", errno.EINVAL, "bare$"))
    manager = CheckpointManager(folder, KEEP, None)
    saves = [manager.save(small_state(step), request(step)) is not None for step in (1, 2)]
    manager.close()
    faults.set()
    tell("bare", saves=saves, shared=len(files(folder)) - len(set(files(folder).values())))


def hang(folder: Path, faults: Faults) -> None:
    """A write that hangs for a while, and then one that hangs for good."""
    manager = CheckpointManager(
        folder, KEEP, None, options=SavingOptions(in_background=True, hang_seconds=HANG)
    )
    manager.save(small_state(1), request(1))
    manager.wait()
    heard.clear()
    faults.set(("write", -4, ".tmp"))
    begun = time.monotonic()
    manager.save(small_state(2), request(2))
    went_on = time.monotonic() - begun
    while not any("hangs" in line for line in heard):
        time.sleep(0.05)
    skipped = manager.save(small_state(3), request(3)) is None and manager.failed_step == 3
    faults.set()
    while not any(line.startswith("saved") for line in heard):
        time.sleep(0.05)
    manager.save(small_state(4), request(4))
    tell("hang", went_on=went_on, skipped=skipped, later=manager.wait())
    faults.set(("write", -3600, ".tmp"))
    manager.save(small_state(5), request(5))
    saved = manager.save(small_state(6), request(6, emergency=True))
    manager.close()
    newest = max(step for step in (1, 4) if (folder / f"rolling_step_{step:06d}.pt").exists())
    tell("exit", saved=saved is not None, failed=manager.failed_step, newest=newest)


def main() -> None:
    root, faults = Path(sys.argv[1]), Faults(Path(sys.argv[2]), Path(sys.argv[3]))
    logging.getLogger("gpt2ckpt").addHandler(Ear())
    logging.getLogger("gpt2ckpt").setLevel(logging.INFO)
    fail_each_call(root / "checkpoints", faults)
    go_without_links_and_folder_sync(root / "bare", faults)
    hang(root / "slow", faults)


if __name__ == "__main__":
    main()
