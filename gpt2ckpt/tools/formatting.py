"""Sizes, times and losses as text."""

from datetime import datetime, timedelta

WIDTH = 80  # columns; a table is no wider
HALF_A_YEAR = timedelta(days=182)


def short_bytes(count: float) -> str:
    """Return bytes in at most five characters, in decimal units: 999B, 9.7M, 149M, 1.5G."""
    for unit in ("B", "K", "M", "G", "T"):
        if count < 999.5 or unit == "T":
            break
        count /= 1000
    return f"{count:.0f}{unit}" if count >= 99.5 or unit == "B" else f"{count:.1f}{unit}"


def long_bytes(count: float) -> str:
    """Return bytes with a space before the unit: 9.7 MB."""
    short = short_bytes(count)
    return f"{short[:-1]} {short[-1]}{'' if short.endswith('B') else 'B'}"


def short_time(moment: datetime | None, now: datetime) -> str:
    """Return a local time as `ls -l` prints it: day and minute, or the year if it is older.

    Both times have a time zone; "older" is more than half a year before `now`.
    """
    if moment is None:
        return "-"
    recent = abs(now - moment) < HALF_A_YEAR
    return f"{moment.astimezone():{'%m-%d %H:%M' if recent else '%Y-%m-%d'}}"


def loss(value: float | None) -> str:
    """Return a loss in six characters, or a dash."""
    if value is None:
        return "-"
    return f"{value:.4f}" if 0 <= value < 10 else f"{value:.3f}"
