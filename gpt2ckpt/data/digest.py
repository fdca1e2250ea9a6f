"""Digests of the complete content of a corpus, cached between processes.

XXH3 is faster than any disk, so the first start takes about as long as one read of the data. More
than 1 GiB is read in a background thread while the run trains. The digests of large files are
cached in the user's cache directory with the path, size, modification times and inode of the file,
so that the next start does not read the file again.
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

from gpt2ckpt.data.plugin_tokens import PluginTokens
from gpt2ckpt.data.token_files import TokenFile, Tokens
from gpt2ckpt.files import durable

AT_ONCE = 1 << 30  # bytes; if more must be read, a background thread reads them
_CACHED = 16 << 20  # bytes of the smallest file whose digest is cached
_CHUNK_TOKENS = 1 << 19
_SETTLED = 2.0  # seconds after a change from which the next change gets a different time
_MOST_ENTRIES = 20_000
_DIGEST = re.compile(r"[0-9a-f]{32}")

Content: TypeAlias = Tokens | TokenFile | PluginTokens


class Contents:
    """The digest of every file of a corpus, in the order of the files.

    A digest is 32 hex digits (xxh3_128) over the bytes of all tokens. The digests are known after
    construction if at most AT_ONCE bytes must be read. Otherwise `start` reads the files in a
    background thread.
    """

    def __init__(self, files: Sequence[Content]) -> None:
        self.files = list(files)
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._digests: list[str] | None = None
        self._stamps = self._read_stamps()
        known = _read_cache()
        unread = [
            file
            for file in self.files
            if isinstance(file, PluginTokens)
            or (isinstance(file, TokenFile) and _cached(file, known) is None)
        ]
        if sum(file.nbytes for file in unread) <= AT_ONCE:
            self._digests = self._compute()

    def start(self) -> None:
        """Start to read the remaining files in a background thread."""
        if self._digests is None and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="data digest", daemon=True)
            self._thread.start()

    def forget_changed(self) -> bool:
        """Forget all digests if a file was changed since they were computed; return whether.

        Raises:
            InputError: a file cannot be read.
        """
        stamps = self._read_stamps()
        if stamps == self._stamps:
            return False
        self._stamps, self._digests, self._thread = stamps, None, None
        return True

    def _read_stamps(self) -> list[list[int]]:
        return [_stamp(file) for file in self.files if isinstance(file, TokenFile)]

    def known(self, seconds: float = 0.0) -> list[str] | None:
        """Return the digests, or None if they are not known after `seconds`.

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
        except Exception as error:  # raised again in `known`
            self._error = error

    def _compute(self) -> list[str]:
        known, read = _read_cache(), {}
        digests = []
        for file in self.files:
            if not isinstance(file, TokenFile):
                digests.append(_digest(file))
                continue
            digest = _cached(file, known)
            if digest is None:
                stamp = _stamp(file)
                digest = _digest(file)
                if file.nbytes >= _CACHED and _stamp(file) == stamp and _is_settled(file):
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


def _cache_file() -> Path | None:
    """Return the cache file; None for a user without a home directory."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(given) if given.startswith("/") else Path.home() / ".cache"
    except RuntimeError:
        return None
    return folder / "gpt2ckpt" / "data_digests.json"


def _key(file: TokenFile) -> str:
    return f"{os.path.realpath(file.path)}:{file.offset}"


def _stamp(file: TokenFile) -> list[int]:
    """Return attributes that change with the content, such as ctime, which users cannot set."""
    status = file.status()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _is_settled(file: TokenFile) -> bool:
    """Return whether any later change would change the attributes, despite coarse clocks."""
    return time.time() - file.status().st_ctime > _SETTLED


def _cached(file: TokenFile, known: dict[str, Any]) -> str | None:
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
    """Add entries. Of two processes that write at once, one may lose its entries."""
    path = _cache_file()
    if path is None:
        return
    entries = [*{**_read_cache(), **read}.items()][-_MOST_ENTRIES:]
    with contextlib.suppress(OSError):  # without a cache the next start is only slower
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(path, json.dumps(dict(entries)).encode())
