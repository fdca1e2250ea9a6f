"""Digests of all that a corpus holds, remembered from one process to the next.

XXH3 reads memory faster than any disk delivers it, so what a first start costs is reading the data
once. Files of more than a gigabyte together are read by a thread while the training goes on. The
digest of a large file is remembered in the user's cache folder, under its path, size, times of
change and inode: the next start does not read the file again.
"""

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import xxhash

from gpt2ckpt.data.token_files import TokenFile, Tokens

AT_ONCE = 1 << 30  # bytes of files that are read before the start: seconds on a slow disk
_REMEMBERED = 16 << 20  # bytes of a file above which its digest is remembered
_CHUNK_TOKENS = 1 << 19
_SETTLED = 2.0  # seconds after which another change gives a file another time of change
_MOST_ENTRIES = 20_000
_DIGEST = re.compile(r"[0-9a-f]{32}")

Content: TypeAlias = Tokens | TokenFile


class Contents:
    """The digest of every file of a corpus, in the order of the files.

    Digests are 32 hex digits (xxh3_128) over the bytes of all tokens. Those of text, of remembered
    files and of files that are quickly read are there from the start; the others when the thread
    that `start` begins has read them.
    """

    def __init__(self, files: Sequence[Content]) -> None:
        self.files = list(files)
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._digests: list[str] | None = None
        self._stamps = self._read_stamps()
        known = _read_cache()
        unread = [file for file in self.files if isinstance(file, TokenFile)]
        unread = [file for file in unread if _remembered(file, known) is None]
        if sum(file.nbytes for file in unread) <= AT_ONCE:
            self._digests = self._compute()

    def start(self) -> None:
        """Begin to read what has not been read, in the background."""
        if self._digests is None and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="data digest", daemon=True)
            self._thread.start()

    def forget_changed(self) -> bool:
        """Forget digests of files that were written since; return whether there are any.

        Raises:
            InputError: a file is out of reach.
        """
        stamps = self._read_stamps()
        if stamps == self._stamps:
            return False
        self._stamps, self._digests, self._thread = stamps, None, None
        return True

    def _read_stamps(self) -> list[list[int]]:
        return [_stamp(file) for file in self.files if isinstance(file, TokenFile)]

    def known(self, seconds: float = 0.0) -> list[str] | None:
        """Return the digests, or None where they are not known after waiting so many `seconds`.

        Raises:
            InputError: a file could not be read.
        """
        if seconds and self._thread is not None:
            self._thread.join(seconds)
        if self._error is not None:
            raise self._error
        return self._digests

    def _run(self) -> None:
        try:
            self._digests = self._compute()
        except Exception as error:  # raised where the digests are asked for
            self._error = error

    def _compute(self) -> list[str]:
        known, read = _read_cache(), {}
        digests = []
        for file in self.files:
            if not isinstance(file, TokenFile):
                digests.append(_digest(file))
                continue
            digest = _remembered(file, known)
            if digest is None:
                stamp = _stamp(file)
                digest = _digest(file)
                if file.nbytes >= _REMEMBERED and _stamp(file) == stamp and _is_settled(file):
                    read[_key(file)] = [*stamp, digest]
            digests.append(digest)
        if read:
            _write_cache(read)
        return digests


def _digest(tokens: Content) -> str:
    hasher = xxhash.xxh3_128()
    for start in range(0, len(tokens), _CHUNK_TOKENS):
        part = tokens[start : start + _CHUNK_TOKENS]
        hasher.update(part.astype(part.dtype.newbyteorder("<"), copy=False).data)
    return hasher.hexdigest()


# ------------------------------------------------ the cache, without which all is the same but slow


def _cache_file() -> Path | None:
    """The file in the user's cache folder; None for a user without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(given) if given.startswith("/") else Path.home() / ".cache"
    except RuntimeError:
        return None
    return folder / "gpt2ckpt" / "data_digests.json"


def _key(file: TokenFile) -> str:
    return f"{os.path.realpath(file.path)}:{file.offset}"


def _stamp(file: TokenFile) -> list[int]:
    """What changes when the content does: the time of the inode, too, which nobody can set."""
    status = file.status()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _is_settled(file: TokenFile) -> bool:
    """Whether a change from now on would show: clocks of file systems are coarse."""
    return time.time() - file.status().st_ctime > _SETTLED


def _remembered(file: TokenFile, known: dict[str, Any]) -> str | None:
    entry = known.get(_key(file))
    if not isinstance(entry, list) or entry[:-1] != _stamp(file):
        return None
    digest = entry[-1]
    return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None


def _read_cache() -> dict[str, Any]:
    path = _cache_file()
    try:
        content = json.loads(path.read_bytes()) if path else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_cache(read: dict[str, Any]) -> None:
    """Add entries. Of two processes that do so at once one may win: the other's are read again."""
    path = _cache_file()
    if path is None:
        return
    entries = [*{**_read_cache(), **read}.items()][-_MOST_ENTRIES:]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    # A cache that cannot be written costs time at the next start, and nothing else.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(dict(entries)))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
