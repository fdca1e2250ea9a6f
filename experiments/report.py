"""Formats measurements as Markdown tables."""

from collections.abc import Iterable
from statistics import median


def spread(values: Iterable[float], form: str) -> str:
    """Return median, minimum and maximum as text."""
    known = list(values)
    middle, least, most = (format(pick(known), form) for pick in (median, min, max))
    return f"{middle} ({least} to {most})"


def grid(head: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
