"""Expands the paths and globs of `data.train` and `data.val` to files."""

import glob
from pathlib import Path

from gpt2ckpt.errors import ConfigError, InputError
from gpt2ckpt.files.permissions import require_access


def expand_files(setting: str, patterns: str | None) -> list[Path]:
    """Return the regular files that `patterns` matches, each once, sorted by path.

    Args:
        setting: the key that the user set ("data.train"), for messages.
        patterns: a path, a glob (`**` descends into folders), or several separated by commas; `~`
            is the home directory. An existing path is used literally, even if it contains
            brackets or commas, and a glob that matches files is not split at its commas.

    Raises:
        ConfigError: `patterns` is empty.
        InputError: a pattern matches no file, or is a folder.
    """
    if patterns is None or patterns.strip() in ("", "???"):
        raise ConfigError(f"{setting} is not set: pass a file or a glob with {setting}=PATH")
    parts = [patterns] if _exists(patterns) or _matches(patterns) else patterns.split(",")
    found: set[Path] = set()
    for part in (part.strip() for part in parts):
        if part:
            found.update(_expand(setting, part))
    return sorted(found)


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError):  # the name is too long, or the home directory is unknown
        return False


def _matches(pattern: str) -> bool:
    return any(Path(name).is_file() for name in glob.iglob(pattern, recursive=True))  # noqa: PTH207


def _expand(setting: str, part: str) -> list[Path]:
    if _exists(part):
        path = Path(part).expanduser()
        if path.is_dir():
            raise InputError(
                f"cannot read {setting}={part!r}: it is a folder. Pass its files, e.g. "
                f"{setting}={part.rstrip('/') + '/**/*'!r}"
            )
        return [path]
    try:
        pattern = str(Path(part).expanduser())
    except RuntimeError as error:
        raise InputError(
            f"cannot read {setting}={part!r}: {error}. Write the path without ~"
        ) from error
    names = glob.glob(pattern, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
    files = [path for path in map(Path, names) if path.is_file()]
    if not files:
        _require_access(pattern)
        what = "no file matches" if glob.has_magic(pattern) else "no such file"
        example = f"folder/*{Path(part).suffix or '.txt'}"
        raise InputError(
            f"cannot read {setting}={part!r}: {what} (looked in {Path.cwd()}). Pass existing "
            f"files, e.g. {setting}={example!r}"
        )
    return files


def _require_access(pattern: str) -> None:
    """Raise InputError if a folder that could contain matching files cannot be read."""
    for parent in reversed(Path(pattern).parents):
        for folder in glob.glob(str(parent), recursive=True):  # noqa: PTH207
            require_access(Path(folder))
