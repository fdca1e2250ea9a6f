"""Finding the state that `resume=WHAT` means."""

from dataclasses import dataclass
from pathlib import Path

from gpt2ckpt.checkpoint.aside import ABANDONED
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.reading import load
from gpt2ckpt.checkpoint.store import Found, Store
from gpt2ckpt.errors import CheckpointError, ConfigError, did_you_mean
from gpt2ckpt.runs.claim import holds_checkpoints
from gpt2ckpt.runs.layout import CHECKPOINTS, STAMPED

AUTO = "auto"
SELECTORS = {
    "latest": Role.LATEST,
    "best": Role.BEST,
    "best_previous": Role.BEST_PREVIOUS,
    "emergency": Role.EMERGENCY,
    "latest_backup": Role.LATEST_BACKUP,
    AUTO: Role.LATEST,
}


@dataclass(frozen=True)
class Place:
    """Where to look: a run directory, and the role or the one file that is asked for.

    A file that lies in no run (`in_run` false), copied somewhere by hand, can only start a new one.
    """

    directory: Path
    role: Role | None = None
    file: Path | None = None
    in_run: bool = True


def locate(what: str, given: Path | None, outputs: Path, key: str = "resume") -> Place | None:
    """What `what` names, without reading a checkpoint; None if `auto` finds nothing to resume.

    `given` is hydra.run.dir where the user gave it; else names are looked for in the newest run
    under `outputs`. `key` is what the user typed `what` for.

    Raises CheckpointError if there is no such thing, ConfigError for a word that means nothing.
    """
    if what in SELECTORS:
        directory = given or newest_run(outputs)
        if directory is not None and holds_checkpoints(directory):
            return Place(directory, SELECTORS[what])
        if what == AUTO:
            return None
        instead = f"name a run directory or a checkpoint file with {key}=PATH"
        instead += ", or leave resume out to start anew" if key == "resume" else ""
        if directory is None:
            raise no_run(outputs, instead)
        where = f"{directory}" if given else f"{directory}, the newest run"
        raise CheckpointError(f"there is no checkpoint in {where}: {instead}")
    if not what.strip():
        raise ConfigError(f"{key} is empty: it takes {', '.join(SELECTORS)} or a path")
    path = Path(what).expanduser()
    if path.is_dir():
        directory = path.parent if path.name == CHECKPOINTS else path
        return Place(directory, Role.LATEST)
    if path.is_file():
        return _place_of(path)
    if "/" not in what and not what.endswith(".pt"):
        hint = did_you_mean(what, SELECTORS)
        raise ConfigError(
            f"{key}={what} is no file, no directory and none of {', '.join(SELECTORS)}.{hint}"
        )
    raise CheckpointError(f"{key}={what}: there is no such file or directory")


def read(place: Place) -> Found:
    """The valid state nearest to what was asked for. Raises CheckpointError if there is none."""
    from gpt2ckpt.runs import history  # imports Hydra, which those who list runs do without

    store = Store(place.directory / CHECKPOINTS)
    run = history.run_id_in(place.directory) if place.in_run else None
    if place.file is None:
        return store.find(place.role or Role.LATEST, run)
    try:
        return Found(place.file, load(place.file))
    except CheckpointError as error:
        if not place.in_run:
            raise
        found = store.find(Role.LATEST, run)
        return Found(found.path, found.state, [(place.file, str(error)), *found.skipped])


def newest_run(outputs: Path) -> Path | None:
    """The run directory under `outputs` whose name carries the latest time stamp."""
    if not outputs.is_dir():
        return None
    stamped = [(STAMPED.fullmatch(path.name), path) for path in outputs.iterdir()]
    runs = [(match["stamp"], path) for match, path in stamped if match and "_run_" in path.name]
    return max(runs)[1] if runs else None


def no_run(outputs: Path, instead: str) -> CheckpointError:
    """The error where a name such as latest can mean nothing; `instead` is what else to do."""
    what = "holds no run" if outputs.is_dir() else "does not exist"
    return CheckpointError(
        f"there is no checkpoint in {outputs}, since {outputs.absolute()} {what}: give the command "
        f"where the run was started, or {instead}"
    )


def _place_of(file: Path) -> Place:
    folder = file.absolute().parent  # links are kept: checkpoints/ may be one
    while folder.name.startswith(ABANDONED):
        folder = folder.parent
    if folder.name != CHECKPOINTS:
        return Place(folder, file=file, in_run=False)
    return Place(folder.parent, file=file)
