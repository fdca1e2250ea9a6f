"""Formats the report that a drill prints."""

from gpt2ckpt.recovery_drill.filesystem_checks import FileSystem
from gpt2ckpt.recovery_drill.results import Cost, DrillResult, disk_need
from gpt2ckpt.units import human_bytes, human_duration, plural

LABEL = 13
SHOWN = 5  # differences


def verdict(drill: DrillResult) -> list[str]:
    """Return the lines of the report."""
    rows = [("", ""), *_recovery(drill), *file_system(drill.file_system)]
    rows += [("", ""), *_cost(drill), ("", ""), *_choices(drill), ("", ""), _last(drill)]
    return lines(rows)


def lines(rows: list[tuple[str, str]]) -> list[str]:
    """Return rows of a label and a text as aligned lines."""
    return [f"{label:{LABEL}}{text}".rstrip() for label, text in rows]


def file_system(found: FileSystem) -> list[tuple[str, str]]:
    """Return the rows about the file system."""
    where = f"{found.kind} on {found.device}"
    if found.problems:
        rows = [("file system", f"NOT FIT: {where}")]
        return rows + [("", f"{check.operation}: {check.problem}") for check in found.problems]
    links = "hard links" if found.has_links else "copies, since there are no hard links"
    rows = [
        ("file system", f"{where}: fit for saves ({links}; {len(found.checks)} checks)"),
        (
            "",
            f"{_speed(found.write_speed)} written and synced, {_speed(found.read_speed)} read back",
        ),
    ]
    if found.is_in_memory:
        rows.append(
            ("", "the file system is in memory: every checkpoint is lost when the machine restarts")
        )
    return rows


def duration(seconds: float) -> str:
    """Return a duration in milliseconds, in seconds, or in its two largest units."""
    if seconds < 0.995:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 59.5 else human_duration(seconds)


def _recovery(drill: DrillResult) -> list[tuple[str, str]]:
    found = drill.recovery
    story = (
        f"killed at step {found.kill.steps} while it wrote {found.kill.writing}; resumed from step "
        f"{found.kill.resumed_from}"
    )
    again = (
        f"{plural(found.identical_steps, 'step')} trained again with identical losses"
        if found.identical_steps
        else "no step had to be trained again"
    )
    rows = [("recovery", story), ("", again)]
    if found.is_exact:
        same = f"all {found.tensors} tensors and {found.steps} losses as in a run without the kill"
        return [*rows, ("exact", f"yes, bitwise: {same}")]
    rows.append(("exact", f"NO: {len(found.differing)} differences from a run without the kill"))
    rows += [("", line) for line in found.differing[:SHOWN]]
    if len(found.differing) > SHOWN:
        rows.append(("", f"and {len(found.differing) - SHOWN} more"))
    return rows


def _cost(drill: DrillResult) -> list[tuple[str, str]]:
    settings, cost = drill.settings, drill.cost
    save_every = settings.checkpoint.save_every
    lost = cost.lost_by_crash(save_every)
    total = settings.total_steps * cost.step
    return [
        ("step", f"{duration(cost.step)}, so {settings.total_steps:,} take {duration(total)}"),
        (
            "save",
            f"{human_bytes(cost.size)}; training waits {_stall(cost.stall)} (first save "
            f"{_stall(cost.first_stall)}); durable after {duration(cost.durable_after)}",
        ),
        (
            "a crash",
            f"costs at most {duration(lost)} of work (checkpoint.save_every={save_every}) "
            f"and {duration(cost.restart)} to restart",
        ),
        ("a signal", "Ctrl+C and SIGTERM cost no step: the run saves before it stops"),
        ("disk", _disk(drill)),
    ]


def _disk(drill: DrillResult) -> str:
    need, cost = disk_need(drill.settings, drill.cost), drill.cost
    epochs = f" and {human_bytes(need.epochs)} for epochs" if need.epochs else ""
    text = (
        f"the run needs at most {human_bytes(need.others)}{epochs}; {human_bytes(cost.free)} are "
        "free: "
    )
    if need.hours is None:
        return text + "enough until the end"
    return text + f"FULL AFTER {need.hours:,.1f} HOURS at this rate"


def _choices(drill: DrillResult) -> list[tuple[str, str]]:
    """Return the costs of several values of checkpoint.save_every, the chosen one included."""
    chosen, cost = drill.settings.checkpoint.save_every, drill.cost
    head = ("save_every", f"{'training waits':>14}{'a crash costs at most':>23}{'written':>14}")
    rows = [head]
    for every in sorted({max(1, chosen // 25), max(1, chosen // 5), chosen, chosen * 4}):
        mark = " (now)" if every == chosen else ""
        rows.append((f"{every:,}{mark}", _choice(cost, every)))
    return rows


def _choice(cost: Cost, every: int) -> str:
    written = f"{human_bytes(cost.written_per_hour(every))}/h"
    lost = duration(cost.lost_by_crash(every))
    return f"{cost.stall_fraction(every):>14.2%}{lost:>23}{written:>14}"


def _last(drill: DrillResult) -> tuple[str, str]:
    if drill.passed:
        return (
            "PASSED",
            "the run was killed during a save, resumed, and ended bitwise as without the kill",
        )
    reasons = ["the resume was not exact"] * (not drill.recovery.is_exact)
    reasons += ["the file system is not fit for saves"] * bool(drill.file_system.problems)
    return ("FAILED", "; ".join(reasons))


def _stall(seconds: float) -> str:
    return "under 10 ms" if seconds < 0.01 else duration(seconds)


def _speed(bytes_per_second: float) -> str:
    return f"{human_bytes(bytes_per_second)}/s"
