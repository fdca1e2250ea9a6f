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

    Its files are named by role, and an atomic rename replaces the file of a name. Only files with
    such names are replaced, moved or deleted.

    Attributes:
        folder: checkpoints/.
        watch: Called with the number of bytes of each write and read of `put`.
    """

    folder: Path
    watch: durable.Watch = durable.no_progress

    def files(self) -> list[Path]:
        """Return the checkpoint files in the folder, sorted by name, without files of the user."""
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
            encoded: The bytes of the state.
            request: The step and the roles.
            retention: How many files are kept.
            pinned: Names that are never deleted.
            spare: A file that the new file overwrites; it no longer exists afterwards.

        Returns:
            The file that was written.

        Raises:
            OSError, CheckpointError: The save failed. Each name has its old state, or the new state
                if that was already durable.
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

        Raises the same exceptions as `put`.
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

        Each state always has a name, because it is linked in the archive folder first.

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
