"""A digest of source files, independent of the folder that they are in."""

from collections.abc import Iterable
from pathlib import Path

import xxhash


def source_digest(folder: Path, paths: Iterable[Path]) -> str:
    """Return 32 hex digits over the relative paths and the contents of files in `folder`."""
    hasher = xxhash.xxh3_128()
    for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
        try:
            content = path.read_bytes()
        except OSError:
            continue  # a dangling link of an editor, or a file that was just deleted
        name = path.relative_to(folder).as_posix().encode()
        hasher.update(b"%d %d " % (len(name), len(content)) + name + content)
    return hasher.hexdigest()
