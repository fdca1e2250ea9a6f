"""The folders in checkpoints/ that hold archived states and quarantined files.

abandoned_YYYYMMDD_HHMMSS/ holds states that a run abandoned by going back to an older step, and
corrupt_YYYYMMDD_HHMMSS/ holds damaged files. Both are deleted only by `checkpoints prune`.
"""

from datetime import datetime, timedelta
from pathlib import Path

ABANDONED, CORRUPT = "abandoned_", "corrupt_"  # how the names of the folders begin


def unused_folder(folder: Path, prefix: str, when: datetime) -> Path:
    """Return the path of a new folder in `folder`, named by `when` or the next free second."""
    while (path := folder / f"{prefix}{when:%Y%m%d_%H%M%S}").exists():
        when += timedelta(seconds=1)
    return path


def archive_folders(folder: Path, prefix: str) -> list[Path]:
    """Return the archive folders in `folder`, without symbolic links, which may lead out of it."""
    found = (path for path in folder.glob(f"{prefix}*") if path.is_dir())
    return sorted(path for path in found if not path.is_symlink())


def all_folders(folder: Path) -> list[Path]:
    """Return a folder, its archive folders, and all folders in these."""
    archives = [path for prefix in (ABANDONED, CORRUPT) for path in folder.glob(f"{prefix}*")]
    inner = [path for archive in archives for path in archive.rglob("*")]
    return [folder, *(path for path in (*archives, *inner) if path.is_dir())]
