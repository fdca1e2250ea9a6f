"""Finds validation files that are also training files."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A file and its known identities: the inode, or a digest of the content, or both."""

    name: str
    marks: frozenset[object]


def overlap_warning(train: Sequence[Known], val: Sequence[Known]) -> str | None:
    """Return a warning that names the validation files that are also training files."""
    trained = frozenset[object]().union(*(file.marks for file in train))
    both = [file.name for file in val if file.marks & trained]
    if not both:
        return None
    more = f" and {len(both) - 1} more" if len(both) > 1 else ""
    return (
        f"{both[0]}{more} of data.val is also in data.train: the validation loss, which selects "
        "best_model.pt, would be measured on training data. Remove the file from data.train, or "
        "pass different files in data.val"
    )
