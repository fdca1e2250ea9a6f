"""One checkpoints/ folder: saves states under their roles, and archives later ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gpt2ckpt.checkpoint import format, names
from gpt2ckpt.checkpoint.archive_folders import ABANDONED, unused_folder
from gpt2ckpt.checkpoint.reading import check, step_of
from gpt2ckpt.checkpoint.retention import (
    Delete,
    Link,
    Operation,
    Publish,
    Retention,
    SaveRequest,
    own_names,
    plan_save,
)
from gpt2ckpt.files import durable


@dataclass(frozen=True)
class Store:
    """A checkpoints/ folder.

    Its files are named by role; a name moves to another state by an atomic rename. Only files with
    such names are replaced, moved or deleted.

    Attributes:
        folder: checkpoints/.
        watch: called with the number of bytes of each write and read of `put`.
    """

    folder: Path
    watch: durable.Watch = durable.no_progress

    def files(self) -> list[Path]:
        """Return the checkpoints in the folder by name, without a user's own files."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if names.role_of(path.name))

    def put(
        self,
        encoded: format.Encoded,
        request: SaveRequest,
        retention: Retention,
        pinned: frozenset[str] = frozenset(),
        spare: Path | None = None,
    ) -> Path:
        """Save a state under every role of `request`, and delete what `retention` does not keep.

        Args:
            encoded: the bytes of the state.
            request: the roles.
            retention: the sizes of the pools.
            pinned: names that are never deleted.
            spare: a file whose disk blocks the new file uses; it is gone afterwards.

        Returns:
            The state's own file.

        Raises:
            OSError, CheckpointError: the save failed. Each name then has its old state, or the new
                state where that was durable already.
        """
        spares = [spare] if spare is not None else []

        def publish(target: Path) -> None:
            durable.publish(
                target,
                encoded.buffers,
                check=lambda path: check(path, self.watch),
                watch=self.watch,
                spare=spares.pop() if spares else None,
            )

        present = {path.name for path in self.files()}
        self._apply(plan_save(present, request, retention, pinned), publish)
        return self.folder / own_names(request)[0]

    def copy(self, source: Path, operations: Sequence[Publish | Link]) -> None:
        """Carry out `operations` with the state in the file `source` as the new state.

        Raises what `put` does.
        """
        self._apply(
            operations, lambda target: durable.publish(target, durable.chunks(source), check)
        )

    def _apply(self, operations: Sequence[Operation], publish: Callable[[Path], None]) -> None:
        for operation in operations:
            match operation:
                case Publish(name):
                    publish(self.folder / name)
                case Link(source, name):
                    durable.link(self.folder / source, self.folder / name, self.watch)
            self.watch(0)
        durable.delete([self.folder / op.name for op in operations if isinstance(op, Delete)])

    def roll_back_to(self, chosen: Path, step: int, when: datetime) -> Path | None:
        """Archive every state after `step`, and link latest.pt to the file `chosen`.

        Each state has a name at every instant: it is linked in the archive folder first.

        Returns:
            The folder abandoned_YYYYMMDD_HHMMSS/; None if there was no later state.
        """
        later = self.later_than(step)
        if not later:
            return None
        archive = unused_folder(self.folder, ABANDONED, when)
        durable.make_directory(archive)
        for path in later:
            durable.link(path, archive / path.name)
        durable.link(chosen, self.folder / names.LATEST)
        durable.delete([path for path in later if path.name != names.LATEST])
        return archive

    def later_than(self, step: int) -> list[Path]:
        """Return the files of later steps, which a rollback to `step` archives."""
        return [path for path in self.files() if (step_of(path) or 0) > step]
