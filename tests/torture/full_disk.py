"""Fills a real file system at random moments of a run: no file is lost.

The file systems are a small tmpfs and an ext4 on a loop device, each with a file that takes most
of the space. An episode leaves a random amount free, trains, takes and returns space several times,
and finally returns all of it and resumes. Every file with a role must be valid at any time, no
reported save may be lost, and the final state equals that of an undisturbed run bitwise.
"""

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2ckpt.checkpoint.reading import load
from tests.torture import tiny
from tests.torture.tally import Tally

SIZE = 6 << 20  # bytes of each file system
FREE = 1 << 20  # at most so much of it is left free while the disk is short


@dataclass(frozen=True)
class Disk:
    """A small file system and the file that fills it."""

    kind: str
    mount: Path

    def leave_free(self, size: int) -> None:
        """Fill the disk except for about `size` bytes."""
        with contextlib.suppress(OSError), (self.mount / "filler").open("ab") as file:
            free = shutil.disk_usage(self.mount).free
            if free > size:
                os.posix_fallocate(file.fileno(), file.tell(), free - size)

    def give_back(self) -> None:
        (self.mount / "filler").unlink(missing_ok=True)


def torture(folder: Path, episodes: int, seed: int) -> Tally:
    """Run `count` episodes on the two file systems in turn."""
    tally, begun = Tally("full disk"), time.monotonic()
    tiny.make_data(folder)
    with contextlib.ExitStack() as stack:
        try:
            disks = [stack.enter_context(_mounted(folder, kind)) for kind in ("tmpfs", "ext4")]
        except (OSError, subprocess.CalledProcessError) as error:
            tally.skipped = f"skipped: no small file system can be mounted here ({error}); be root"
            return tally
        args = _words(folder)
        undisturbed = folder / "undisturbed"
        child = tiny.fork(args, undisturbed, folder / "undisturbed.out")
        if code := child.wait():
            raise RuntimeError(f"the undisturbed training ended with {code}:\n{child.text()}")
        expected = tiny.final_state(undisturbed)
        for number in range(episodes):
            dice, disk = random.Random(seed + number), disks[(seed + number) % 2]
            try:
                _episode(disk, args, expected, dice, tally)
            except Exception as error:
                tally.fail(seed + number, f"{disk.kind}: {type(error).__name__}: {error}")
            tally.done += 1
            disk.give_back()
            shutil.rmtree(disk.mount / "run", ignore_errors=True)
    tally.seconds = time.monotonic() - begun
    return tally


def _words(folder: Path) -> list[str]:
    args = [word for word in tiny.WORDS if not word.startswith(("data.train", "data.val"))]
    return [*args, f"data.train={folder / 'train.bin'}", f"data.val={folder / 'val.bin'}"]


def _episode(
    disk: Disk, args: list[str], expected: dict[str, Any], dice: random.Random, tally: Tally
) -> None:
    run, output = disk.mount / "run", disk.mount.parent / f"{disk.kind}.out"
    disk.leave_free(dice.randrange(FREE))
    child, safe = tiny.fork(args, run, output), 0
    end = time.monotonic() + tiny.PATIENCE
    next_change = time.monotonic() + dice.random() * 0.3
    while (code := child.ended()) is None:
        assert time.monotonic() < end, f"it hangs: {child.text()[-1500:]}"
        if time.monotonic() > next_change:
            disk.give_back()
            if dice.random() < 0.7:
                disk.leave_free(dice.randrange(FREE))
            next_change += dice.random() * 0.3
        time.sleep(0.002)
    text = child.text()
    tally.counts["failed saves that were reported"] += text.count("SAVE FAILED")
    safe = tiny.acknowledged(text)
    assert code in (0, 1), f"it ended with {code}: {text[-1500:]}"
    assert "Traceback" not in text, text[-1500:]
    tally.counts["trained to the end" if code == 0 else "ended with an error message"] += 1
    damaged = tiny.damaged_files(run)
    assert not damaged, f"{damaged}"
    newest = tiny.newest_valid(run)
    assert newest >= safe, f"step {safe} was reported as saved, but the newest state is {newest}"
    disk.give_back()
    child = tiny.fork(args, run, output)
    code, text = child.wait(), child.text()
    assert code == 0, f"with space again it ended with {code}: {text[-1500:]}"
    final, expected = tiny.final_state(run), dict(expected)
    # A save of the best model may have failed: the best loss is that of the file.
    expected["best_val_loss"] = _best_loss(run)
    where = tiny.differing(final, expected)
    assert where is None, f"{where} differs from the undisturbed training's"
    tally.counts["ended bitwise the same once there was space"] += 1


def _best_loss(run: Path) -> float | None:
    """Return the validation loss of best_model.pt, or None if there is none."""
    path = run / "checkpoints" / "best_model.pt"
    return load(path)["val_loss"] if path.exists() else None


@contextlib.contextmanager
def _mounted(folder: Path, kind: str) -> Iterator[Disk]:
    """Mount a file system of SIZE bytes. Raises CalledProcessError without the right to mount."""
    mount, image = folder / kind, folder / f"{kind}.img"
    mount.mkdir()
    if kind == "tmpfs":
        _call("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(mount))
    else:
        with image.open("wb") as file:
            file.truncate(SIZE)
        _call("mkfs.ext4", "-q", "-O", "^has_journal", str(image))
        _call("mount", "-o", "loop", str(image), str(mount))
    try:
        yield Disk(kind, mount)
    finally:
        _call("umount", str(mount))


def _call(*args: str) -> None:
    subprocess.run(args, check=True, capture_output=True)
