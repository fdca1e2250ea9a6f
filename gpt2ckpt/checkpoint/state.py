"""The state in a checkpoint: its fields, their types and their stored form, described once.

The stored form is the dict that `torch.load` returns. docs/format.md lists the same fields, and a
test compares both. Every file has the fields without a default. A field with a default was added
later, and files of earlier versions without it mean the default.
"""

import functools
import re
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, Self

from gpt2ckpt.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

KEY, PATTERN, OMITTED, STORED = "key", "pattern", "omitted", "stored"  # metadata of a field
IF_KNOWN = {OMITTED: True}  # not stored if it is None


@dataclass(frozen=True)
class ParentRun:
    """The state that a run was forked from: the run that saved it, its step and its file."""

    id: str
    step: int
    file: str


@dataclass(frozen=True)
class RunIdentity:
    """The run that a state belongs to. `wandb_id` is its id in W&B, if that is not `id`."""

    id: str = field(metadata={PATTERN: r"[\w-]+"})  # becomes part of file names
    name: str
    parent: ParentRun | None = None
    wandb_id: str | None = None


@dataclass
class LossSum:
    """The losses of the steps since the last logged step, in nats per token.

    Part of every checkpoint, so that a resume between two logged steps logs the same mean.
    """

    total: float = 0.0
    steps: int = 0

    def add(self, loss: float) -> None:
        """Count the loss of one more step."""
        self.total += loss
        self.steps += 1

    @property
    def mean(self) -> float:
        """The mean loss of these steps; there must be at least one."""
        return self.total / self.steps


@dataclass
class AnomalyCounts:
    """The non-finite losses, non-finite weights and loss spikes that a run has handled so far.

    Attributes:
        handled: The anomalies after which the run skipped a batch or returned to a checkpoint.
        skipped_blocks: The blocks that the run did not train on, or whose training was undone.
        in_a_row: The batches skipped since the last step.
        recent: The last finite losses, kept only if loss spikes are detected.
    """

    handled: int = field(default=0, metadata={KEY: "rollbacks"})
    skipped_blocks: int = 0
    in_a_row: int = 0
    recent: list[float] = field(default_factory=list)

    def event(self) -> dict[str, int]:
        """Return the entries of a logged step; none until an anomaly was handled."""
        if not self.handled:
            return {}
        return {"rollbacks": self.handled, "skipped_blocks": self.skipped_blocks}

    def skip(self, blocks: int) -> None:
        """Count a skipped batch of `blocks` blocks."""
        self.handled += 1
        self.in_a_row += 1
        self.skipped_blocks += blocks

    def accept(self, loss: float, window: int) -> None:
        """Count a step, and keep the last `window` losses."""
        self.in_a_row = 0
        self.recent = [*self.recent, loss][-window:] if window else []


@dataclass(kw_only=True)
class DataIdentity:
    """The data that a run trains on.

    Attributes:
        digest: The digest of the tokens, or of samples of token files over 1 MiB.
        files: A digest of all tokens of each file, training files first; None until known.
        unverified_since: The last step at which the files were known to be unchanged, in an
            emergency save that was made before their digests were computed.
    """

    digest: str
    blocks_per_epoch: int
    description: str = ""
    files: list[str] | None = field(default=None, metadata=IF_KNOWN)
    unverified_since: int | None = field(default=None, metadata=IF_KNOWN)


@dataclass(kw_only=True)
class DataState(DataIdentity):
    """The data of a run, and the position of the run in the data.

    `position` counts blocks over all epochs, including skipped ones. `evaluated_on` is a digest of
    the blocks of the last evaluation.
    """

    position: int
    evaluated_step: int
    evaluated_on: str | None = None
    unlogged: LossSum = field(default_factory=LossSum)
    anomalies: AnomalyCounts = field(default_factory=AnomalyCounts, metadata={KEY: "bad_numbers"})


@dataclass(frozen=True)
class ScheduleState:
    """The learning-rate schedule: its length, and the factor of the next step."""

    total_steps: int
    scale: float


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What bitwise equality depends on besides the state and the config; None if not recorded."""

    device: str
    device_name: str
    precision: str
    threads: int
    ranks: int = 1
    torch_build: str | None = field(default=None, metadata=IF_KNOWN)
    cpu_capability: str | None = field(default=None, metadata=IF_KNOWN)
    cpu_flags: str | None = field(default=None, metadata=IF_KNOWN)
    libc: str | None = field(default=None, metadata=IF_KNOWN)
    capability: str | None = field(default=None, metadata=IF_KNOWN)
    cuda: str | None = field(default=None, metadata=IF_KNOWN)
    cudnn: str | None = field(default=None, metadata=IF_KNOWN)
    nccl: str | None = field(default=None, metadata=IF_KNOWN)
    variables: dict[str, str] | None = field(default=None, metadata=IF_KNOWN)


@dataclass(frozen=True, kw_only=True)
class Versions:
    """The versions of the libraries and of the code that trained; None if not known."""

    gpt2ckpt: str
    torch: str
    python: str
    code: str | None = None
    commit: str | None = None
    dirty: bool | None = None


@dataclass(frozen=True, kw_only=True)
class PluginIdentity:
    """A plugin that a run uses.

    Attributes:
        module: its name.
        options: the options in use, as `optimizer.lion`.
        version: the version of its installed distribution; None without one.
        source: a digest of its sources; None where it has no files.
    """

    module: str
    options: list[str]
    version: str | None = None
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class RngState:
    """The states of the random generators of Python, NumPy and PyTorch."""

    python: list[Any]
    numpy: list[Any]
    torch: "Tensor"
    cuda: "Tensor | None"
    mps: "Tensor | None" = None


@dataclass(frozen=True)
class StoppedBy:
    """The callback that ended a run before its last step, and its reason."""

    callback: str
    reason: str


@dataclass(kw_only=True)
class CheckpointMeta:
    """The entries of a state without tensors, which are in the head of a file.

    Reading never fails: `unusable` lists the stored name of each entry that is missing or has a
    wrong type, and its field has a neutral value (0, "", None or empty). The digests of a file
    prove that its bytes have not changed, and not who wrote them.
    """

    format: str
    step: int
    epoch: int
    tokens_seen: int
    train_loss: float | None
    val_loss: float | None
    best_val_loss: float | None
    best_step: int | None
    reason: str
    saved_at: str
    run: RunIdentity
    config: dict[str, Any]
    overrides: list[str]
    data: DataState
    schedule: ScheduleState
    environment: Environment
    versions: Versions
    scaler: dict[str, Any]
    plugins: list[PluginIdentity] | None = field(default=None, metadata=IF_KNOWN)
    stopped_by: StoppedBy | None = field(default=None, metadata=IF_KNOWN)
    unusable: list[str] = field(default_factory=list, compare=False, metadata={STORED: False})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the state with the stored form `values`; unknown keys are ignored."""
        state: Self
        state, unusable = _read(cls, values, "")
        if not isinstance(state.config.get("name"), str):
            unusable.append("config.name")
        state.unusable = unusable
        return state

    def to_dict(self) -> dict[str, Any]:
        """Return the stored form; lists, dicts and tensors are not copied."""
        return dict(_stored(self))

    def has(self, name: str) -> bool:
        """Return whether the file holds a usable entry with a stored name, e.g. `data.position`."""
        return not any(name == bad or name.startswith(f"{bad}.") for bad in self.unusable)

    def setting(self, group: str, key: str) -> Any:
        """Return a value of the saved config; None if the config has no such key."""
        values = self.config.get(group)
        return values.get(key) if isinstance(values, dict) else None

    @property
    def blocks_per_step(self) -> int | None:
        """The blocks of one step by the saved config; None if they are not set there."""
        size, accum = (self.setting("trainer", key) for key in ("batch_size", "grad_accum"))
        return size * accum if type(size) is type(accum) is int else None

    def without_tensors(self) -> "CheckpointMeta":
        """Return a state of the entries without tensors."""
        return CheckpointMeta(
            **{part.name: getattr(self, part.name) for part in fields(CheckpointMeta)}
        )

    def require_resumable(self, name: object) -> None:
        """Raise CheckpointError naming the first unusable entry of the state in file `name`.

        Tensors are not checked here: the model and the optimizer compare them with their own.
        """
        if self.unusable:
            raise CheckpointError(
                f"{name} cannot be resumed: {self.unusable[0]} is missing or unusable in it"
            )


@dataclass(kw_only=True)
class CheckpointState(CheckpointMeta):
    """A state with its tensors.

    `model` has the weights by parameter name; `optimizer` is the state dict of OptimizerSet;
    `callbacks` has the state of each callback that keeps one, by the callback's name.
    """

    model: "dict[str, Tensor]"
    optimizer: dict[str, Any]
    rng: RngState
    callbacks: dict[str, Any] | None = field(default=None, metadata=IF_KNOWN)

    def drop_tensors(self) -> None:
        """Free the memory of weights, optimizer moments and callbacks after they were copied."""
        self.model, self.optimizer, self.callbacks = {}, {}, None


# ---------------------------------------------------------------- stored form


def _stored(value: Any) -> Any:
    if isinstance(value, list) and any(map(is_dataclass, value)):
        return [_stored(item) for item in value]
    if not is_dataclass(value):
        return value
    stored = {}
    for part in fields(value):
        item = getattr(value, part.name)
        if part.metadata.get(STORED, True) and not (part.metadata.get(OMITTED) and item is None):
            stored[part.metadata.get(KEY, part.name)] = _stored(item)
    return stored


def _read(cls: type, values: Mapping[str, Any], prefix: str) -> tuple[Any, list[str]]:
    """Return an object of the dataclass `cls`, and the stored names of its unusable entries."""
    arguments: dict[str, Any] = {}
    unusable: list[str] = []
    for part in fields(cls):
        if not part.metadata.get(STORED, True):
            continue
        key, hint = part.metadata.get(KEY, part.name), _hints(cls)[part.name]
        name, is_required = f"{prefix}{key}", part.default is part.default_factory is MISSING
        nested: Any = next(filter(is_dataclass, _alternatives(hint)), None)
        value = values.get(key)
        if (item := _item_class(hint)) is not None and isinstance(value, list):
            read = [_read(item, v if isinstance(v, dict) else {}, f"{name}.") for v in value]
            arguments[part.name] = [entry for entry, below in read if not below]
            unusable += dict.fromkeys(bad for _, below in read for bad in below)
            continue
        if nested is not None and isinstance(value, dict):
            arguments[part.name], below = _read(nested, value, f"{name}.")
            unusable += below
        elif key in values and _fits(value, hint, part.metadata.get(PATTERN)):
            arguments[part.name] = value
        elif key in values or is_required:
            unusable.append(name)
            if is_required:
                arguments[part.name] = _neutral(hint)
    return cls(**arguments), unusable


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, localns={"Tensor": Any})  # torch is not imported here


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    is_generic = typing.get_origin(hint) in (list, dict)
    return (hint,) if is_generic else typing.get_args(hint) or (hint,)


def _item_class(hint: Any) -> Any:
    """Return the dataclass of the items of a list; None for another field."""
    items = [typing.get_args(kind) for kind in _alternatives(hint)]
    return next((inner[0] for inner in items if inner and is_dataclass(inner[0])), None)


def _fits(value: Any, hint: Any, pattern: str | None = None) -> bool:
    """Return whether a value in a file has the type of a field; an int must not be negative."""
    for kind in _alternatives(hint):
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if kind is Any:
            return True
        if kind is int:
            fits = type(value) is int and 0 <= value < 1 << 63
        elif kind is float:
            fits = type(value) in (int, float)
        elif origin is list:
            fits = isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
        elif origin is dict:
            fits = isinstance(value, dict) and all(_fits(v, inner[1]) for v in value.values())
        else:
            fits = isinstance(value, kind) and not is_dataclass(kind)
        if fits:
            return pattern is None or bool(re.fullmatch(pattern, value))
    return False


def _neutral(hint: Any) -> Any:
    """Return the value of a field for a file without a usable value."""
    kind: type = _alternatives(hint)[-1]  # None, if that is allowed
    if is_dataclass(kind):
        return _read(kind, {}, "")[0]
    return None if kind in (NoneType, Any) else (typing.get_origin(kind) or kind)()
