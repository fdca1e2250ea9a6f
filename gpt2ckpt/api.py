"""The Python interface: `import gpt2ckpt` offers what this module defines.

docs/python.md is its guide.
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from gpt2ckpt.application import CommandLine, parse_command_line
from gpt2ckpt.checkpoint import reading
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.newest_valid import candidates
from gpt2ckpt.config.explain import explain
from gpt2ckpt.config.plugins import load as load_plugins
from gpt2ckpt.config.replay import Values, freeze
from gpt2ckpt.console import printable_on
from gpt2ckpt.data.tokenizer import Tokenizer, tokenizer_of
from gpt2ckpt.errors import CheckpointError, ConfigError, InputError, did_you_mean
from gpt2ckpt.exits import is_from_hydra
from gpt2ckpt.files.permissions import require_access
from gpt2ckpt.host_program import HostProgram, on_cpu
from gpt2ckpt.loggers import metrics_file
from gpt2ckpt.parallel.process_group import SingleProcess
from gpt2ckpt.parallel.ranks import read_ranks
from gpt2ckpt.runs.events import read_events
from gpt2ckpt.runs.layout import CHECKPOINTS, EVENTS, HISTORY, LINEAGE, OUTPUTS, RECORD
from gpt2ckpt.runs.resume import SELECTORS, Scope, locate, no_run
from gpt2ckpt.single_run import train_run
from gpt2ckpt.tools.inventory import as_record, list_checkpoints
from gpt2ckpt.tools.targets import RunPaths, checkpoint_of_role

if TYPE_CHECKING:
    import pandas
    from torch import nn

log = logging.getLogger(__name__)

StrPath: TypeAlias = str | PathLike[str]
ENDS = ("run_started", "run_resumed", "run_stopped", "run_finished")


class Run:
    """The files of a run, read again at each call, also while the run trains.

    Attributes:
        directory: The absolute path of the run directory.
    """

    def __init__(self, directory: StrPath, config: Values | None = None) -> None:
        """Name a run; `gpt2ckpt.open_run` checks that there is one.

        Args:
            directory: The run directory.
            config: The frozen config, if it is known; None to read it from the directory.
        """
        self.directory = Path(directory).absolute()
        self._config = config

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"

    @property
    def config(self) -> dict[str, Any]:
        """The frozen config, as nested dicts: that of the newest checkpoint, or of the last start.

        Raises:
            InputError: The directory records no config that can be read.
        """
        if self._config is None:
            self._config = _saved_config(self.directory) or _launch_config(self.directory)
        return self._config

    @overload
    def history(self, as_frame: Literal[False] = False) -> list[dict[str, Any]]: ...

    @overload
    def history(self, as_frame: Literal[True]) -> "pandas.DataFrame": ...

    def history(self, as_frame: bool = False) -> "list[dict[str, Any]] | pandas.DataFrame":
        """Return the logged steps and evaluations (metrics.jsonl), sorted by step.

        A damaged line is left out. An evaluation has `val_loss` and a step `train_loss`; docs/
        monitoring.md lists the keys.

        Args:
            as_frame: Whether to return a pandas DataFrame, with NaN for a missing value.

        Returns:
            One dict for each event; an empty list for a run that has logged nothing.

        Raises:
            InputError: The file cannot be read, or pandas is not installed.
        """
        path = self.directory / HISTORY
        try:
            events = metrics_file.read(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        if not as_frame:
            return events
        if importlib.util.find_spec("pandas") is None:
            raise InputError(
                "history(as_frame=True) needs pandas, which is not installed: pip install pandas, "
                "or leave as_frame out for a list of dicts"
            )
        import pandas

        return pandas.DataFrame(events)

    def events(self) -> list[dict[str, Any]]:
        """Return what happened to the run (events.jsonl), in order; docs/events.md lists it.

        Raises:
            InputError: The file cannot be read.
        """
        try:
            return read_events(self.directory)
        except OSError as error:
            path = self.directory / EVENTS
            raise InputError(f"{path} cannot be read: {error.strerror}") from error

    def checkpoints(self) -> list[dict[str, Any]]:
        """Return the checkpoints, as `python -m gpt2ckpt.checkpoints list --json` prints them.

        Only the head of each file is read.

        Returns:
            One dict for each file name, with `path`, `roles`, `group`, `step`, `epoch`, `val_loss`,
            `size_bytes`, `saved_at`, `reason`, `run_dir`, and `error` for a damaged file.
        """
        found = list_checkpoints(self._paths)
        return [as_record(checkpoint, found) for checkpoint in found]

    def checkpoint(self, which: str = "latest") -> Path:
        """Return the file of a checkpoint; if its head is damaged, that of the next best.

        Args:
            which: latest, best, best_previous, emergency (the newest) or latest_backup.

        Raises:
            ConfigError: There is no such selector.
            CheckpointError: There is no readable checkpoint of this kind.
        """
        if which not in SELECTORS:
            hint = did_you_mean(which, SELECTORS)
            raise ConfigError(f"{which!r} is none of {', '.join(SELECTORS)}.{hint}")
        return checkpoint_of_role(self._paths, SELECTORS[which])

    @property
    def best_val_loss(self) -> float | None:
        """The lowest validation loss, in nats per token; None without an evaluation."""
        logged = [e["best_val_loss"] for e in self.history() if "best_val_loss" in e]
        if logged:
            return float(logged[-1])
        metas = (checkpoint.meta for checkpoint in list_checkpoints(self._paths))
        return next((m.best_val_loss for m in metas if m.best_val_loss is not None), None)

    @property
    def is_finished(self) -> bool:
        """Whether the last process of the run trained to its last step."""
        ends = [event["event"] for event in self.events() if event["event"] in ENDS]
        return ends[-1:] == ["run_finished"]

    @property
    def _paths(self) -> RunPaths:
        return RunPaths(self.directory, self.directory / CHECKPOINTS)


def train(overrides: Sequence[str]) -> Run:
    """Train a run in this process, as `python -m gpt2ckpt.train` does, and return it.

    The program is left as it was: signal handlers, logging, warning filters, `sys.argv`, the
    environment, Hydra's state, the settings of PyTorch and the random generators. See
    docs/python.md for what is printed, and for signals.

    Args:
        overrides: The arguments of the command, each a string: overrides in Hydra's grammar, such
            as "optimizer.lr=3e-4" or "+resume=latest", and --config-dir and --config-name.

    Returns:
        The run. It is finished, or `is_finished` is false because a signal stopped it whose handler
        returned. With dry_run=true, the run that would be trained.

    Raises:
        ConfigError: An override is wrong, or asks for something else than a single run.
        InputError: Data, a directory or a checkpoint to resume cannot be used.
        LockedError: Another process trains in the directory, or this process trains already.
        UserError: The training cannot continue, e.g. because the loss is not finite.
        KeyboardInterrupt: Ctrl+C stopped the training; an emergency checkpoint was saved before.
    """
    host = HostProgram()
    try:
        with host.kept():
            result = train_run(_parse(overrides), SingleProcess(), host)
            if result.message:
                print(printable_on(sys.stdout, result.message))
    except Exception as error:
        if is_from_hydra(error):
            raise ConfigError(explain(error)) from error
        raise
    finally:
        host.signals.deliver()
    return Run(result.directory, result.config)


def open_run(path: StrPath) -> Run:
    """Return the run in a directory, or the one that a checkpoint belongs to.

    Args:
        path: A run directory, its checkpoints folder, a checkpoint in it, or `latest` for the run
            in outputs/ that was trained last.

    Raises:
        InputError: There is no run.
        ConfigError: `path` is neither a path nor a selector.
    """
    place = locate(os.fspath(path), Scope(OUTPUTS), key="")
    if place is None:
        raise no_run(OUTPUTS, "pass the path of a run directory")
    directory = place.directory
    marks = (CHECKPOINTS, HISTORY, EVENTS, LINEAGE, RECORD)
    if not (place.in_run and any((directory / name).exists() for name in marks)):
        raise InputError(f"{path} is not a run: pass a run directory, e.g. outputs/gpt2_run_…")
    return Run(directory)


def load_model(
    what: StrPath, *, device: str = "auto", plugins: Sequence[str] = ()
) -> "tuple[nn.Module, Tokenizer]":
    """Return a trained model in evaluation mode, and its tokenizer.

    If the file of a run is damaged, the next best is loaded, with a warning in the log.

    Args:
        what: A checkpoint, a run directory (its latest), a selector such as `best` for the newest
            run in outputs/, a Hugging Face GPT-2 folder, or nanoGPT's ckpt.pt.
        device: As trainer.device: auto, cpu, cuda, cuda:N or mps.
        plugins: Modules that register the model, if it is not a GPT-2 (docs/extending.md).

    Returns:
        The model, in float32 on its device: `model(tokens)` maps token ids [B, T] (int64) to logits
        [B, T, V]. The tokenizer, with `encode(text)` and `decode(tokens)`.

    Raises:
        CheckpointError: There is no valid checkpoint.
        InputError: The file or folder cannot be used.
        ConfigError: `what` is neither a path nor a selector, or the device is not available.
        LockedError: A training runs in this process.
    """
    host = HostProgram()
    with host.kept(), host.torch_settings():
        from gpt2ckpt.training.trained_model import load_trained

        load_plugins(plugins)
        trained = load_trained(os.fspath(what), device, "auto")
    for path, reason in trained.skipped:
        log.warning("skipped %s: %s", path, reason)
    return trained.model, tokenizer_of(trained.shape.vocab_size)


def load_checkpoint(path: StrPath) -> dict[str, Any]:
    """Return the content of a checkpoint file, with every byte verified.

    It is the dict that `torch.load(path, weights_only=True)` returns, which verifies nothing;
    docs/format.md lists its keys. The tensors are on the CPU.

    Args:
        path: A checkpoint file, e.g. `run.checkpoint("best")`.

    Raises:
        CheckpointError: The file is missing, damaged, or not a checkpoint.
    """
    file = Path(path).expanduser()
    require_access(file)
    if file.is_dir():
        raise CheckpointError(f"{file} is a directory: pass a file, e.g. open_run(…).checkpoint()")
    with on_cpu():
        return reading.load(file)


def _parse(overrides: Sequence[str]) -> CommandLine:
    """Return the parsed arguments. Raises ConfigError for what only the command line can do."""
    if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        raise ConfigError(
            f"overrides must be a list of strings, such as ['trainer.max_steps=100']: {overrides!r}"
        )
    ranks = read_ranks(os.environ)
    if ranks is not None and ranks.size > 1:
        raise ConfigError(
            f"gpt2ckpt.train trains in one process, and torchrun started {ranks.size} ranks: use "
            "torchrun -m gpt2ckpt.train instead"
        )
    try:
        line = parse_command_line("train", list(overrides))
    except SystemExit as error:  # --version was printed
        raise ConfigError("--version is for the command line: use gpt2ckpt.__version__") from error
    if line.multirun:
        raise ConfigError(
            "-m starts a sweep, which needs the command line: python -m gpt2ckpt.train -m …, or "
            "call gpt2ckpt.train once for each combination"
        )
    if line.asks_hydra:
        raise ConfigError(f"{' '.join(line.flags)} is for the command line: leave it out")
    return line


def _saved_config(directory: Path) -> dict[str, Any] | None:
    """Return the config in the newest readable checkpoint of a run; None if there is none."""
    for file in candidates(directory / CHECKPOINTS, Role.LATEST):
        try:
            meta = reading.read_meta(file)
        except CheckpointError:
            continue
        if meta.has("config"):
            return meta.config
    return None


def _launch_config(directory: Path) -> dict[str, Any]:
    """Return the config that Hydra recorded at the last start. Raises InputError without one."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    record = directory / RECORD
    later = sorted(record.glob("resume_*/config.yaml"), key=lambda file: file.stat().st_mtime_ns)
    file = later[-1] if later else record / "config.yaml"
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
        return freeze(values)
    except (OSError, YAMLError, OmegaConfBaseException, AttributeError, KeyError) as error:
        raise InputError(
            f"{directory} records no config that can be read: it has no readable checkpoint, and "
            f"{file} is missing or damaged"
        ) from error
