"""The folders in checkpoints/ that hold archived states and quarantined files.

abandoned_YYYYMMDD_HHMMSS/ holds states that a run abandoned when it returned to an older step, and
corrupt_YYYYMMDD_HHMMSS/ holds damaged files. Only `checkpoints prune` deletes these folders.
"""

from datetime import datetime, timedelta
from pathlib import Path

ABANDONED, CORRUPT = "abandoned_", "corrupt_"  # prefixes of the names of the folders


def unused_folder(folder: Path, prefix: str, when: datetime) -> Path:
    """Return an unused path in `folder`, named by `when` or the next free second."""
    while (path := folder / f"{prefix}{when:%Y%m%d_%H%M%S}").exists():
        when += timedelta(seconds=1)
    return path


def archive_folders(folder: Path, prefix: str) -> list[Path]:
    """Return the archive folders in `folder`, without symbolic links, which may lead elsewhere."""
    found = (path for path in folder.glob(f"{prefix}*") if path.is_dir())
    return sorted(path for path in found if not path.is_symlink())


def all_folders(folder: Path) -> list[Path]:
    """Return a folder, its archive folders, and all folders in the archive folders."""
    archives = [path for prefix in (ABANDONED, CORRUPT) for path in folder.glob(f"{prefix}*")]
    inner = [path for archive in archives for path in archive.rglob("*")]
    return [folder, *(path for path in (*archives, *inner) if path.is_dir())]
