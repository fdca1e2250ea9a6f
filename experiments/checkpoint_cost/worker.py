"""Runs one measurement in its own process and prints a line of JSON."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from experiments.processes import resident_bytes
from gpt2ckpt.openmp import set_wait_policy

SAVES = 2  # timed after the first, which is reported by itself


def measure_saves(variant: str, name: str, folder: Path) -> dict[str, Any]:
    """Return the cost of each save: seconds stopped and to durable, CPU seconds, bytes written."""
    from experiments.checkpoint_cost.savers import SAVERS
    from experiments.checkpoint_cost.states import build_state, change, size_of

    state = build_state(name)
    saver = SAVERS[variant](folder)
    _forget_peak()
    before = resident_bytes("VmRSS")
    saves = []
    for number in range(1, SAVES + 2):
        change(state)
        written, cpu, start = _bytes_written(), time.process_time(), time.perf_counter()
        saver.save(state, number)
        stopped = time.perf_counter() - start
        saver.wait()
        durable = time.perf_counter() - start
        saves.append(
            {
                "stopped": stopped,
                "durable": durable,
                "cpu": time.process_time() - cpu,
                "written": _bytes_written() - written,
            }
        )
    extra = resident_bytes("VmHWM") - before
    return {"state_bytes": size_of(state), "saves": saves, "extra_bytes": extra}


def _bytes_written() -> int:
    """Return the bytes that this process has sent to storage (proc(5), write_bytes)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"])


def _forget_peak() -> None:
    """Reset VmHWM to the memory that is resident now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    set_wait_policy()
    task, variant, name, folder = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
    if task == "save":
        result: Any = measure_saves(variant, name, folder)
    else:
        from experiments.checkpoint_cost import readers

        match task:
            case "prepare":
                result = readers.prepare(name, folder)
            case "list":
                result = readers.list_many(folder)
            case _:
                result = readers.measure(variant, folder, cached=task == "cached")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
