"""The results of a part of the torture tests: counts, and failures with their seeds."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts of one part: `done` counts the episodes, `counts` their results."""

    name: str
    done: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    skipped: str = ""

    def fail(self, seed: int, sentence: str) -> None:
        """Record a failure; `seed` is that of the episode."""
        self.counts["FAILED"] += 1
        self.failures.append(f"{self.name}, seed {seed}: {sentence}")

    def row(self) -> list[str]:
        """Return the cells of a table row."""
        listed = self.counts.most_common()
        outcomes = self.skipped or "; ".join(f"{what} {count:,}" for what, count in listed)
        return [
            self.name,
            f"{self.done:,}",
            outcomes,
            f"{len(self.failures):,}",
            f"{self.seconds:.0f}",
        ]


def table(tallies: list[Tally]) -> str:
    """Return all parts as Markdown."""
    head = ["part", "done", "what came of it", "failures", "seconds"]
    rows = [head, ["---"] * len(head), *(tally.row() for tally in tallies)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
