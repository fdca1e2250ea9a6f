"""Sends Ctrl+C or another signal at random moments of a run, including its start and its end.

    python tests/endtoend/ctrl_c.py 50 [SEED]

The earliest moment is when the process has a handler for the signal, which the kernel lists in
/proc. Before that, while the interpreter starts, no program can handle signals.
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from commands import Done, finish, start_interpreter, steps_done

from gpt2ckpt.checkpoint.reading import check
from gpt2ckpt.errors import CheckpointError

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@dataclass(frozen=True)
class Stop:
    """The result of a signal `seconds` after `step`; `problem` is empty if all is correct.

    `phase` is what the signal interrupted: a start, a training run, or a finished run.
    """

    number: signal.Signals
    step: int
    seconds: float
    phase: str
    problem: str


def catches_signals(process: "subprocess.Popen[str]") -> bool:
    """Return whether SIGTERM has a handler; Python does not install one."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    [caught] = [line for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def stop_at(
    overrides: list[str], folder: Path, number: signal.Signals, step: int, seconds: float
) -> Stop:
    """Start `overrides` in its own directory and send the signal `seconds` after `step` steps.

    Step 0 is the earliest moment.
    """
    process = start_interpreter("train", [*overrides, "hydra.run.dir=run"], folder)
    run_directory = folder / "run"
    while process.poll() is None and not (
        steps_done(run_directory) >= step if step else catches_signals(process)
    ):
        time.sleep(0.001)
    time.sleep(seconds)
    process.send_signal(number)
    done = finish(process)
    phase = "training"
    if done.code == 0:
        phase = "ended"
    elif "there was nothing to save" in done.err:
        phase = "nothing to save"
    return Stop(number, step, seconds, phase, problem_of(done, number, phase, folder))


def problem_of(done: Done, number: signal.Signals, phase: str, folder: Path) -> str:
    """Return the problems of a stopped run; empty if there are none."""
    everything = f"\n{done.out[-3000:]}\n{done.err[-3000:]}"
    for word in ("Traceback", "KeyboardInterrupt", "Exception ignored", "Error"):
        if word in done.out + done.err:
            return f"it printed {word}{everything}"
    if done.code not in (0, CODES[number]):
        return f"exit code {done.code}{everything}"
    if phase == "training" and "+resume=latest" not in done.out:
        return f"no resume command is printed{everything}"
    saves = folder / "run" / "checkpoints"
    if phase == "training" and not any(saves.glob("emergency_step_*.pt")):
        return f"no emergency checkpoint{everything}"
    for path in saves.glob("*.pt"):
        try:
            check(path)
        except CheckpointError as error:
            return f"{path} is not valid: {error}"
    return ""


def stop_often(
    overrides: list[str], folder: Path, count: int, seed: int, numbers: tuple[signal.Signals, ...]
) -> Iterator[Stop]:
    """Stop `count` runs at random moments of their start, their steps and their end in turn."""
    dice = random.Random(seed)
    begin = time.monotonic()
    yield stop_at(overrides, _made(folder / "stop_0"), numbers[0], 1, 0.0)
    start_up = time.monotonic() - begin  # and an end, which is short
    for turn in range(1, count):
        step, longest = (0, start_up) if turn % 3 == 1 else (STEPS, 0.3)
        if turn % 3 == 2:
            step, longest = dice.randrange(1, STEPS), 0.03
        place, number = _made(folder / f"stop_{turn}"), numbers[turn % len(numbers)]
        yield stop_at(overrides, place, number, step, dice.random() * longest)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def main() -> None:
    """Write token files, stop runs on them, and print the results."""
    import numpy as np

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        walk = np.cumsum(np.random.default_rng(0).integers(-2, 3, 3000)) % 64
        for split, tokens in (("train", walk[:2000]), ("val", walk[2000:])):
            tokens.astype("<u2").tofile(folder / f"{split}.bin")
        overrides = [*SETTINGS, f"data.train={folder}/train.bin", f"data.val={folder}/val.bin"]
        print(f"seed {seed}, {count} times SIGINT")
        stops = []
        for stop in stop_often(overrides, folder, count, seed, (signal.SIGINT,)):
            print(f"  {stop.seconds:.3f} s after step {stop.step}: {stop.phase}", flush=True)
            stops.append(stop)
    for phase, times in sorted(Counter(stop.phase for stop in stops).items()):
        print(f"  {phase}: {times}")
    bad = [stop for stop in stops if stop.problem]
    for stop in bad:
        print(f"  PROBLEM {stop.seconds:.3f} s after step {stop.step}: {stop.problem}")
    print(f"  problems: {len(bad)}")
    sys.exit(1 if bad else 0)


STEPS = 150
SETTINGS = [
    *("data=tokens", "model.n_layer=2", "model.n_embd=32", "model.n_head=2"),
    *("model.block_size=32", "model.vocab_size=64", "trainer.batch_size=2", "trainer.threads=1"),
    *(f"trainer.max_steps={STEPS}", "trainer.eval_every=25", "trainer.sample_every=0"),
    *("checkpoint.save_every=10", "trainer.log_every=1", "schedule.warmup_steps=5"),
]

if __name__ == "__main__":
    main()
