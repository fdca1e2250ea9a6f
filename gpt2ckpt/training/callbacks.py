"""The callbacks of a run: objects with hooks that the training loop calls on the first rank.

A callback only watches: the random generators, the gradients and the training mode of the model are
after each hook as they were before it. A callback that raises is switched off with one warning, and
the training continues.
"""

import contextlib
import logging
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gpt2ckpt import console
from gpt2ckpt.checkpoint.state import StoppedBy
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.runs.start import Start

if TYPE_CHECKING:
    from torch import nn

    from gpt2ckpt.training.state import TrainingState

log = logging.getLogger(__name__)

States = Mapping[str, Any]  # the saved state of each callback by its name
HOOKS = ("on_run_start", "on_step_end", "on_evaluation_end", "on_checkpoint_saved", "on_run_end")


@dataclass
class Callback:
    """One callback, and its last good state.

    Attributes:
        name: Its name in the config.
        label: Its name in messages, e.g. "callback 'ema' (plugin my_plugin)".
        build: Returns the object that has the hooks.
        target: That object.
        saved: The state that checkpoints hold; None without one.
        is_off: Whether the callback raised, and is not called any more.
    """

    name: str
    label: str
    build: Callable[[], Any]
    target: Any = None
    saved: dict[str, Any] | None = None
    is_off: bool = False

    def __str__(self) -> str:
        return self.label

    def open(self, saved: dict[str, Any] | None) -> None:
        """Build the object and let it load the state `saved`, if there is one."""
        target = self.build()
        if not any(hasattr(target, hook) for hook in HOOKS):
            raise TypeError(f"{type(target).__name__} has none of the hooks {', '.join(HOOKS)}")
        self.target, self.saved = target, saved
        if saved is not None:
            self.load(saved)

    def load(self, saved: dict[str, Any]) -> None:
        """Let the object load a state, in tensors of its own."""
        if hasattr(self.target, "load_state_dict"):
            from gpt2ckpt.checkpoint.snapshot import storable_copy

            self.target.load_state_dict(storable_copy(saved))

    def capture(self) -> None:
        """Make a copy of the object's present state the saved one, if it has `state_dict`."""
        if hasattr(self.target, "state_dict"):
            from gpt2ckpt.checkpoint.snapshot import storable_copy

            self.saved = storable_copy(self.target.state_dict())

    def switch_off(self, hook: str, error: BaseException) -> None:
        """Stop to call this callback, because `hook` raised `error`."""
        self.is_off = True
        log.warning(
            "%s raised %s in %s: it is switched off, and the training continues",
            self,
            described(error),
            hook,
        )


class CallbackRun:
    """The run as the hooks of one callback see it.

    Args:
        state: The live training state.
        directory: The run directory.
        config: The frozen config.
        stop: Called with the reason if the callback asks for the end of the training.

    Attributes:
        directory: The run directory.
        config: The frozen config, read-only.
    """

    def __init__(
        self,
        state: "TrainingState",
        directory: Path,
        config: Mapping[str, Any],
        stop: Callable[[str], None],
    ) -> None:
        self._state, self._stop = state, stop
        self.directory = directory
        self.config: Mapping[str, Any] = _read_only(config)

    @property
    def step(self) -> int:
        """The optimizer steps done."""
        return self._state.counters.step

    @property
    def model(self) -> "nn.Module":
        """The model that is trained. With FSDP its parameters are shards."""
        return self._state.model

    def stop(self, reason: str) -> None:
        """End the training after this step, as if it was the last step of the run."""
        self._stop(console.printable(" ".join(str(reason).split())))


class Callbacks:
    """The callbacks of a run, in the order of the config; none on all ranks but the first.

    Life cycle: `open` builds the objects and loads their saved states, before anything is written;
    `attach` connects them to a training; the loop calls `call` at each hook, `capture` at each save
    and `roll_back` at each rollback.

    Attributes:
        stopped_by: The callback that asked for the end of the training, which checkpoints record:
            a run that is killed before its last save ends at the same step.
        saved_files: The checkpoints that are durable, and that no hook was called for yet. The
            thread that saves appends to it.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.stopped_by: StoppedBy | None = None
        self.saved_files: deque[Path] = deque()
        self._callbacks = list(callbacks)
        self._runs: dict[str, CallbackRun] = {}
        self._state: TrainingState | None = None
        self._request_end: Callable[[bool], None] = lambda requested: None

    def open(self, start: Start) -> None:
        """Build the callbacks, each with its state in the checkpoint that the run starts from.

        Raises:
            ConfigError: A builder raised, or a callback refused its state.
        """
        states = (start.state.callbacks or {}) if start.state else {}
        self.stopped_by = stopped_by(start)
        for callback in self._callbacks:
            try:
                callback.open(states.get(callback.name))
            except (Exception, SystemExit) as error:
                problem = "cannot be built"
                if callback.target is not None and start.found is not None:
                    problem = f"refuses its state in {start.found.path}"
                raise ConfigError(
                    f"{callback} {problem}: {described(error)}. Change its keys "
                    f"callback.{callback.name}.…, or train without it"
                ) from error

    def attach(
        self,
        state: "TrainingState",
        directory: Path,
        config: Mapping[str, Any],
        request_end: Callable[[bool], None],
    ) -> None:
        """Connect the callbacks to a training.

        Args:
            state: The live training state.
            directory: The run directory.
            config: The frozen config.
            request_end: Asks for the end of the training, or withdraws that.
        """
        self._state, self._request_end = state, request_end
        if self.stopped_by is not None:  # in an earlier process
            request_end(True)

        def run_of(name: str) -> CallbackRun:
            return CallbackRun(state, directory, config, lambda reason: self._stop(name, reason))

        self._runs = {callback.name: run_of(callback.name) for callback in self._callbacks}

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of each callback that has it, with its run and the `arguments`."""
        for callback in [c for c in self._callbacks if not c.is_off and hasattr(c.target, hook)]:
            with self._unchanged(), _guarded(callback, hook):
                getattr(callback.target, hook)(self._runs[callback.name], *arguments)

    def report_saves(self) -> None:
        """Call `on_checkpoint_saved` for each checkpoint that became durable since the last call.

        A checkpoint that was deleted or archived meanwhile is left out.
        """
        while self.saved_files:
            path = self.saved_files.popleft()
            if self._callbacks and path.exists():
                self.call("on_checkpoint_saved", path)

    def capture(self) -> dict[str, Any] | None:
        """Return the states to be saved by callback; None if no callback keeps one.

        A callback that is switched off, or that fails here, keeps its last good state.
        """
        for callback in [c for c in self._callbacks if not c.is_off]:
            with self._unchanged(), _guarded(callback, "state_dict"):
                callback.capture()
        return {c.name: c.saved for c in self._callbacks if c.saved is not None} or None

    def roll_back(self, states: States) -> None:
        """Restore the states of the checkpoint that the training returned to.

        A callback that was added to the run after that checkpoint is built anew.
        """
        self.stopped_by = None
        self._request_end(False)
        for callback in self._callbacks:
            callback.saved = states.get(callback.name)
            if callback.is_off or not hasattr(callback.target, "state_dict"):
                continue
            with self._unchanged(), _guarded(callback, "load_state_dict"):
                if callback.saved is not None:
                    callback.load(callback.saved)
                    continue
                callback.open(None)
                if hasattr(callback.target, "on_run_start"):
                    callback.target.on_run_start(self._runs[callback.name])

    def _stop(self, name: str, reason: str) -> None:
        if self.stopped_by is None:
            self.stopped_by = StoppedBy(name, reason)
            self._request_end(True)

    @contextlib.contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Leave random generators, gradients and the training mode of the model as they are."""
        import torch

        from gpt2ckpt.training.rng import capture_generators, restore_generators

        assert self._state is not None
        model, optimizer = self._state.model, self._state.optimizer
        generators = capture_generators()
        is_training, has_grad = model.training, torch.is_grad_enabled()
        try:
            yield
        finally:
            torch.set_grad_enabled(has_grad)
            if model.training is not is_training:
                model.train(is_training)
            if any(parameter.grad is not None for parameter in model.parameters()):
                optimizer.zero_grad()
            restore_generators(generators)


def stopped_by(start: Start) -> StoppedBy | None:
    """Return the callback that has ended the resumed run; None once its config is changed."""
    if start.state is None or start.directory is None:
        return None
    is_changed = any(change.key.startswith("callback.") for change in start.changes)
    return None if is_changed else start.state.stopped_by


@contextlib.contextmanager
def _guarded(callback: Callback, hook: str) -> Iterator[None]:
    """Switch a callback off that raises; SystemExit is an error, too."""
    try:
        yield
    except (Exception, SystemExit) as error:
        callback.switch_off(hook, error)


def described(error: BaseException) -> str:
    """Return an error with its type and the line that raised it, as one line."""
    text = ""
    with contextlib.suppress(Exception):  # of a __str__ that raises
        text = " ".join(str(error).split())
    where = traceback.extract_tb(error.__traceback__)[-1:]
    at = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in where)
    return f"{type(error).__name__}{f': {text}' if text else ''}{at}"


def _read_only(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: _read_only(item) for key, item in value.items()})
    return tuple(map(_read_only, value)) if isinstance(value, list) else value
