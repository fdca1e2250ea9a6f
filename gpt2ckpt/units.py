"""Formats numbers with units for messages; prefixes are decimal (1 KB is 1000 bytes)."""

import math

PREFIXES = "kMGTPE"


def human_bytes(count: float) -> str:
    """Return bytes in decimal units: 999 B, 1.0 KB, 2.1 GB."""
    return f"{human_count(count)}B".replace("k", "K")


def human_count(count: float) -> str:
    """Return a number with a decimal prefix, for a unit to follow: "999 ", "124.4 M"."""
    if count < 999.5:
        return f"{count:.0f} "
    count, at = count / 1000, 0
    while count >= 999.95 and at < len(PREFIXES) - 1:
        count, at = count / 1000, at + 1
    return f"{count:,.1f} {PREFIXES[at]}"


def human_duration(seconds: float) -> str:
    """Return a duration in its two largest units: <1s, 42s, 1m 34s, 2h 05m, 3d 04h, 6y 120d.

    A year has 365 days. A duration that is not finite is "?".
    """
    if not math.isfinite(seconds):
        return "?"
    if 0 < seconds < 0.5:
        return "<1s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    years, day = divmod(days, 365)
    if years:
        return f"{years:,}y {day:03d}d"
    if days:
        return f"{days}d {hour:02d}h"
    if hours:
        return f"{hours}h {minute:02d}m"
    return f"{minutes}m {second:02d}s" if minutes else f"{second}s"


def plural(count: int, noun: str) -> str:
    """Return a count and its noun: `1 file`, `2 files`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def perplexity(loss: float) -> float:
    """Return e to the power of a loss in nats; infinity if that overflows a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
