"""Validation files that are trained on as well."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A file by its name, and all else that it is known by: its inode, a digest of its content."""

    name: str
    marks: frozenset[object]


def overlap_warning(train: Sequence[Known], val: Sequence[Known]) -> str | None:
    """Return a warning that names the validation files that are among the training files."""
    trained = frozenset[object]().union(*(file.marks for file in train))
    both = [file.name for file in val if file.marks & trained]
    if not both:
        return None
    more = f" and {len(both) - 1} more" if len(both) > 1 else ""
    return (
        f"{both[0]}{more} of data.val is in data.train as well: the validation loss is measured on "
        "data that is trained on, and best_model.pt is chosen by it. Leave the file out of "
        "data.train, or give other files in data.val"
    )
