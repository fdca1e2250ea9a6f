"""The callbacks of a run: objects with hooks that the training loop calls on the first rank.

A callback only observes: after each hook, the random generators, the gradients and the training
mode of the model are restored. A callback that raises is switched off with one warning, and
training continues.
"""

import contextlib
import logging
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gpt2ckpt import console
from gpt2ckpt.checkpoint.state import StoppedBy
from gpt2ckpt.config.registry import option_of
from gpt2ckpt.config.schema import TrainConfig
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
        name: The name in the config.
        label: The name in messages, e.g. "callback 'ema' (plugin my_plugin)".
        build: Returns the object that has the hooks.
        target: The object that `build` returned.
        saved: The state of the object in checkpoints; None without a state.
        is_off: Whether the callback has raised, and is no longer called.
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
        """Pass a copy of a saved state to the object."""
        if hasattr(self.target, "load_state_dict"):
            from gpt2ckpt.checkpoint.snapshot import storable_copy

            self.target.load_state_dict(storable_copy(saved))

    def capture(self) -> None:
        """Copy the current state of the object to `saved`, if the object has `state_dict`."""
        if hasattr(self.target, "state_dict"):
            from gpt2ckpt.checkpoint.snapshot import storable_copy

            self.saved = storable_copy(self.target.state_dict())

    def switch_off(self, hook: str, error: BaseException) -> None:
        """Call this callback no more, because `hook` raised `error`."""
        self.is_off = True
        log.warning(
            "%s raised %s in %s: the callback is switched off, and training continues",
            self,
            described(error),
            hook,
        )


class CallbackRun:
    """The run as passed to the hooks of one callback.

    Args:
        state: The live training state.
        directory: The run directory.
        config: The frozen config.
        stop: Called with the reason if the callback requests the end of the run.

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
        """Return the number of optimizer steps done."""
        return self._state.counters.step

    @property
    def model(self) -> "nn.Module":
        """Return the model in training. With FSDP, its parameters are shards."""
        return self._state.model

    def stop(self, reason: str) -> None:
        """End the run after this step, as if it were the last step."""
        self._stop(console.printable(" ".join(str(reason).split())))


class Callbacks:
    """The callbacks of a run, in the order of the config. Only the first rank has any.

    Life cycle: `open` builds the objects and loads their saved states, before anything is written;
    `attach` connects them to the training state; the loop calls `call` at each hook, `capture` at
    each save and `roll_back` at each rollback.

    Attributes:
        stopped_by: The callback that requested the end of the run. Checkpoints record it, so that a
            run that is killed before its last save ends at the same step.
        saved_files: The durable checkpoints for which `on_checkpoint_saved` was not called yet. The
            thread that saves appends them.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.stopped_by: StoppedBy | None = None
        self.saved_files: deque[Path] = deque()
        self._callbacks = list(callbacks)
        self._runs: dict[str, CallbackRun] = {}
        self._state: TrainingState | None = None
        self._request_end: Callable[[bool], None] = lambda requested: None

    def open(self, start: Start) -> None:
        """Build the callbacks, and load their states from the checkpoint that the run starts from.

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
        """Connect the callbacks to the training state.

        Args:
            state: The live training state.
            directory: The run directory.
            config: The frozen config.
            request_end: Called with true to request the end of the run, with false to withdraw it.
        """
        self._state, self._request_end = state, request_end
        if self.stopped_by is not None:  # by a request in an earlier process
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

        Checkpoints that were deleted or archived meanwhile are omitted.
        """
        while self.saved_files:
            path = self.saved_files.popleft()
            if self._callbacks and path.exists():
                self.call("on_checkpoint_saved", path)

    def capture(self) -> dict[str, Any] | None:
        """Return the states to save by the name of the callback; None if no callback has a state.

        A callback that is switched off, or that fails here, keeps its last good state.
        """
        for callback in [c for c in self._callbacks if not c.is_off]:
            with self._unchanged(), _guarded(callback, "state_dict"):
                callback.capture()
        return {c.name: c.saved for c in self._callbacks if c.saved is not None} or None

    def roll_back(self, states: States) -> None:
        """Restore the states in the checkpoint to which the run rolled back.

        A callback that was added to the run after that checkpoint is built again.
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
        """Restore random generators, gradients and the model's training mode at the end."""
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


def callbacks_of(config: TrainConfig) -> Callbacks:
    """Return the callbacks that a config chooses, which are not built yet."""
    found = []
    for name, settings in config.callback.items():
        option = option_of("callback", settings)
        found.append(Callback(name, str(option), partial(option.build, settings)))
    return Callbacks(found)


def stopped_by(start: Start) -> StoppedBy | None:
    """Return the callback that ended the resumed run; None if a callback's config has changed."""
    if start.state is None or start.directory is None:
        return None
    is_changed = any(change.key.startswith("callback.") for change in start.changes)
    return None if is_changed else start.state.stopped_by


@contextlib.contextmanager
def _guarded(callback: Callback, hook: str) -> Iterator[None]:
    """Switch off a callback that raises an exception, including SystemExit."""
    try:
        yield
    except (Exception, SystemExit) as error:
        callback.switch_off(hook, error)


def described(error: BaseException) -> str:
    """Return an error with its type and the line that raised it, as one line."""
    text = ""
    with contextlib.suppress(Exception):  # the __str__ of an error may raise
        text = " ".join(str(error).split())
    where = traceback.extract_tb(error.__traceback__)[-1:]
    at = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in where)
    return f"{type(error).__name__}{f': {text}' if text else ''}{at}"


def _read_only(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: _read_only(item) for key, item in value.items()})
    return tuple(map(_read_only, value)) if isinstance(value, list) else value
