"""Checks that the data is the same as that of the checkpoint to resume.

Two kinds of digests are compared. The digest of the corpus is available immediately; if it differs,
the run is refused before anything is written. The digests of complete files may take minutes to
compute: a thread then reads the files while the run trains, and regular saves wait until the files
are verified.
"""

import logging
import platform
from collections import Counter
from collections.abc import Callable

from gpt2ckpt.checkpoint.state import CheckpointState, DataIdentity
from gpt2ckpt.config.compose import as_typed
from gpt2ckpt.config.options import Effect
from gpt2ckpt.config.replay import Change
from gpt2ckpt.data.corpus import Corpus
from gpt2ckpt.errors import InputError
from gpt2ckpt.runs.start import Start

log = logging.getLogger(__name__)

OTHER_FILES = {"data.kind", "data.train", "data.val", "data.dtype"}  # keys that select the data
OF_FILES = ("text", "tokens")  # kinds of data that can grow by files
NEW_RUN = "start a new run from this state on the data as it is now, with +fork=true"
POLL = 0.2  # seconds


class DataChanged(InputError):
    """The data differs from that of the checkpoint. The steps trained since must not be saved."""


def data_identity(corpus: Corpus, blocks_per_epoch: int) -> DataIdentity:
    """Return the identity of the data, which each checkpoint records."""
    return DataIdentity(
        digest=corpus.digest,
        blocks_per_epoch=blocks_per_epoch,
        description=corpus.description,
        files=corpus.contents.known(),
    )


def expected_files(start: Start, corpus: Corpus) -> list[str] | None:
    """Return the digests that the files must have; None if the checkpoint does not record them.

    Different data is accepted, and added to the changes that are printed, in three cases: the
    overrides select different files; the run is forked; the overrides select the same files again,
    and files were only added.

    Raises:
        InputError: The data differs in any other case.
    """
    if start.state is None:
        return None
    saved, data = start.state.data, start.frozen["data"]
    changed = {
        change.key
        for change in start.changes
        if change.key.startswith("data.") and change.effect != Effect.HARMLESS
    }
    if changed & OTHER_FILES or (changed and data["kind"] not in OF_FILES):
        return None
    files, known = saved.files, corpus.contents.known()
    # A changed data.val_fraction also changes the digest of the corpus.
    is_same = bool(changed) or saved.digest == corpus.digest
    if is_same and (files is None or known is None or files == known):
        return files
    is_of_files = data["kind"] in OF_FILES and files is not None and known is not None
    grown = is_of_files and not Counter(files) - Counter(known)
    is_named = any(word.startswith(("data.", "data=")) for word in start.given)
    if not (start.fork_requested or (grown and is_named)):
        raise InputError(_refusal(start, corpus, saved, grown=grown))
    old = saved.description or f"digest {saved.digest[:8]}"
    start.changes.append(Change("data", old, corpus.description))
    return None


def _refusal(start: Start, corpus: Corpus, saved: DataIdentity, *, grown: bool) -> str:
    data = start.frozen["data"]
    python = start.state.versions.python if start.state else ""
    if data["kind"] == "embedded" and python.isprintable() and python != platform.python_version():
        return (
            "the text of data=embedded is part of Python and differs between its versions: the "
            f"checkpoint was trained with Python {python}, and this is Python "
            f"{platform.python_version()}. Resume with Python {python}, or {NEW_RUN}"
        )
    what = _difference(corpus, saved.files)
    if grown:
        named = as_typed("data.train", data["train"])
        return (
            f"the data has grown since the checkpoint was saved: {what}. Remove the new files, or "
            f"pass {named} to train on all of it, or {NEW_RUN}"
        )
    return (
        f"the data has changed since the checkpoint was saved: {what}. Restore the old data, or "
        f"{NEW_RUN}"
    )


def _difference(corpus: Corpus, old: list[str] | None) -> str:
    """Return how the files differ from those of the checkpoint, as text."""
    new = corpus.contents.known()
    if old is None or new is None:
        return f"it is now {corpus.description}"
    before, missing = Counter(old), len(old)
    other = []
    for file, digest in zip(corpus.files, new, strict=True):
        if before[digest]:
            before[digest] -= 1
            missing -= 1
        else:
            other.append(file.name)
    if not other:
        return f"{missing} files are missing" if missing else "its files are in a different order"
    names = other[0] if len(other) == 1 else f"{other[0]} and {len(other) - 1} more"
    if len(new) > len(old) and not missing:
        return f"{names} was added"
    return f"{names} has changed" if len(new) == len(old) else f"{names} is new or changed"


class DataCheck:
    """Verifies the complete data files in a background thread while the run trains.

    Each checkpoint records the identity of the data, which is complete once the digests are known.
    Until then, regular saves wait. An emergency save does not wait; it records since which step the
    data is unverified.
    """

    def __init__(
        self,
        corpus: Corpus,
        identity: DataIdentity,
        expected: list[str] | None,
        state: CheckpointState | None,
    ) -> None:
        """Start to read the files whose digests are not known yet.

        Args:
            corpus: The data.
            identity: From `data_identity`; completed here.
            expected: From `expected_files`.
            state: The saved state of a resume or fork; None for a new run.
        """
        since = 0
        if state is not None:
            unverified = state.data.unverified_since
            since = state.step if unverified is None else unverified
        self._corpus, self._identity, self._expected, self._since = (
            corpus,
            identity,
            expected,
            since,
        )
        self._is_settled = identity.files is not None
        if not self._is_settled:
            identity.files, identity.unverified_since = expected, since
            corpus.contents.start()

    def poll(self, seconds: float = 0.0) -> bool:
        """Wait at most `seconds`; return whether the files are verified.

        Raises:
            DataChanged: The files differ from those of the checkpoint.
            InputError: A file cannot be read.
        """
        if self._is_settled:
            return True
        files = self._corpus.contents.known(seconds)
        if files is None:
            return False
        if self._expected is not None and files != self._expected:
            what = _difference(self._corpus, self._expected)
            raise DataChanged(
                f"the data has changed: {what}. The steps after {self._since} may have been "
                "trained on other data, and are not saved. Restore the old data and resume from "
                f"a checkpoint of step {self._since} or before, or {NEW_RUN}"
            )
        self._identity.files, self._identity.unverified_since = files, None
        self._is_settled = True
        return True

    def wait(self, stop_requested: Callable[[], bool], step: int) -> bool:
        """Wait until the files are verified, before the state of `step` is saved.

        Files that were modified since the last save are read again. Raises the errors of `poll`.

        Returns:
            False if a stop was requested first.
        """
        if self._is_settled and self._corpus.contents.forget_changed():
            log.warning("a data file was modified during training: reading the file again")
            self._expected, self._is_settled = self._identity.files, False
            self._corpus.contents.start()
        if not self.poll():
            log.info("this save waits until all data files are read and verified")
        while not self.poll(POLL):
            if stop_requested():
                return False
        self._since = step
        return True
