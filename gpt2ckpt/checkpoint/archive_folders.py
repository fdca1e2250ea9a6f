"""The folders in checkpoints/ of what was set aside: states that a run left, files found damaged.

abandoned_YYYYMMDD_HHMMSS/ and corrupt_YYYYMMDD_HHMMSS/. What is in them is never deleted unasked.
"""

from datetime import datetime, timedelta
from pathlib import Path

ABANDONED, CORRUPT = "abandoned_", "corrupt_"  # how the names of the folders begin


def unused_folder(folder: Path, prefix: str, when: datetime) -> Path:
    """A folder in `folder` that does not exist yet, of that moment or the next free second."""
    while (aside := folder / f"{prefix}{when:%Y%m%d_%H%M%S}").exists():
        when += timedelta(seconds=1)
    return aside


def archive_folders(folder: Path, prefix: str) -> list[Path]:
    """The folders in `folder` that hold what was set aside; a link, which leads out, is none."""
    found = (path for path in folder.glob(f"{prefix}*") if path.is_dir())
    return sorted(path for path in found if not path.is_symlink())


def all_folders(folder: Path) -> list[Path]:
    """A folder, and those in it of what was set aside."""
    aside = [path for word in (ABANDONED, CORRUPT) for path in folder.glob(f"{word}*")]
    inner = [path for place in aside for path in place.rglob("*")]
    return [folder, *(path for path in (*aside, *inner) if path.is_dir())]
