"""What a part of the torture did: how many of what, and each failure with its seed."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts of one part. `done` counts what was asked for; `counts` say what came of it."""

    name: str
    done: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    skipped: str = ""

    def fail(self, seed: int, sentence: str) -> None:
        """Note a failure; `seed` is that of the one episode."""
        self.counts["FAILED"] += 1
        self.failures.append(f"{self.name}, seed {seed}: {sentence}")

    def row(self) -> list[str]:
        """The cells of a table's row."""
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
    """All parts as Markdown."""
    head = ["part", "done", "what came of it", "failures", "seconds"]
    rows = [head, ["---"] * len(head), *(tally.row() for tally in tallies)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
