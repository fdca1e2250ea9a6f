"""`python -m tests.torture.run`: runs the torture tests and prints a table of results.

Each episode has a seed, counted up from --seed. A failure prints its seed, and `--PART 1 --seed N`
repeats it. The exit code is 1 if anything failed.
"""

import argparse
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from tests.torture import crash_states, damage, full_disk, fuzz, kills, tiny
from tests.torture.tally import Tally, table

PARTS: dict[str, Callable[[Path, int, int], Tally]] = {
    "kills": kills.torture,
    "damages": damage.torture,
    "fuzz": fuzz.torture,
    "disk_full": full_disk.torture,
    "crash_states": crash_states.torture,
}
ROUND = {"kills": 40, "damages": 800, "fuzz": 8000, "disk_full": 8, "crash_states": 1600}


def main() -> int:
    """Run the parts in rounds; with --minutes repeat the rounds until the time is over."""
    args = _arguments()
    tiny.warm_up()
    seed = args.seed if args.seed is not None else random.randrange(1 << 30)
    end = time.monotonic() + 60 * args.minutes
    left = {part: getattr(args, part) for part in PARTS}
    tallies: dict[str, Tally] = {}
    first, home = seed, Path.cwd()
    try:
        while any(left.values()) or time.monotonic() < end:
            for part in PARTS:
                count = ROUND[part] if args.minutes else min(ROUND[part], left[part])
                if count:
                    os.chdir(home)
                    _add(tallies, part, _run(part, count, seed))
                    left[part] = max(0, left[part] - count)
                    seed += count
                    _report(args, first, list(tallies.values()))
    except KeyboardInterrupt:
        print("stopped: the table has what was done", file=sys.stderr)
    print(table(list(tallies.values())))
    return 1 if any(tally.failures for tally in tallies.values()) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.run", description=__doc__)
    for part in PARTS:
        flag = f"--{part.replace('_', '-')}"
        parser.add_argument(flag, dest=part, metavar="N", type=int, default=0)
    parser.add_argument(
        "--minutes", metavar="M", type=float, default=0, help="run all parts for M minutes"
    )
    parser.add_argument("--seed", metavar="S", type=int)
    parser.add_argument("--output", metavar="FILE", type=Path, help="also write the table to FILE")
    return parser.parse_args()


def _run(part: str, count: int, seed: int) -> Tally:
    """Run one part in its own folder, which is kept only after a failure."""
    folder = Path(tempfile.mkdtemp(prefix=f"torture_{part}_"))
    print(f"{part}: {count:,} from seed {seed}", file=sys.stderr, flush=True)
    tally = PARTS[part](folder, count, seed)
    for failure in tally.failures:
        print(failure, flush=True)
    if tally.failures:
        print(f"what it left is in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return tally


def _add(tallies: dict[str, Tally], part: str, more: Tally) -> None:
    if (known := tallies.setdefault(part, more)) is not more:
        known.done += more.done
        known.counts += more.counts
        known.failures += more.failures
        known.seconds += more.seconds


def _report(args: argparse.Namespace, seed: int, tallies: list[Tally]) -> None:
    """Write the table so far to the output file."""
    if args.output is None:
        return
    where = f"{platform.system()} {platform.release()}, {os.cpu_count()} cores"
    where += f", Python {platform.python_version()}"
    command = f"python -m tests.torture.run {' '.join(sys.argv[1:])}"
    found = [f"- {failure.splitlines()[0]}" for tally in tallies for failure in tally.failures]
    lines = [
        f"`{command}`, first seed {seed}",
        "",
        f"{where}, torch {torch.__version__}, {date.today()}",
        "",
    ]
    lines += [table(tallies), *(["", "Failures:", *found] if found else [])]
    args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
