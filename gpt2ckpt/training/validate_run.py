"""All checks of a run before anything is written: ranges, data, saved state, length."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpt2ckpt.checkpoint.state import CheckpointState
from gpt2ckpt.config.checks import check_config
from gpt2ckpt.config.registry import build_typed, option_of
from gpt2ckpt.config.replay import Values
from gpt2ckpt.config.schema import TrainConfig, TrainerConfig
from gpt2ckpt.data.corpus import Corpus, open_corpus
from gpt2ckpt.data.tokens import count_blocks
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.optim.schedule import Schedule, build_schedule
from gpt2ckpt.runs.start import Start
from gpt2ckpt.training.callbacks import Callbacks, callbacks_of, stopped_by
from gpt2ckpt.training.data_check import expected_files

if TYPE_CHECKING:
    from gpt2ckpt.training.pretrained import Pretrained


DEFAULT_STEPS = 260  # with the default model, two minutes on two CPU cores in float32
OTHER_CHECKPOINT = "Resume from a different checkpoint, or start a new run"


@dataclass(frozen=True)
class CompletedWork:
    """The work of a run's earlier processes.

    Attributes:
        steps: Optimizer steps.
        blocks: Token blocks read over all epochs, including skipped ones.
        tokens: Tokens trained on.
        blocks_of_last_step: Token blocks of the last step; a resume may change the batch size.
    """

    steps: int = 0
    blocks: int = 0
    tokens: int = 0
    blocks_of_last_step: int = 0


@dataclass(frozen=True)
class ValidatedRun:
    """A checked config, its open data, and the length of the run that follows from both.

    Attributes:
        config: The config as typed objects.
        frozen: The frozen config for checkpoints: the same config as plain values.
        pretrained: The weights that a new run starts from, if any.
        corpus: The data.
        blocks_per_epoch: Token blocks in one pass over the training data.
        total_steps: Optimizer steps of the run.
        schedule: Maps the steps done to the factor of the next step's learning rate.
        done: The work of earlier processes.
        expected_files: Digests that the data files must have; None if not recorded.
        callbacks: The callbacks with their saved states; none on all ranks but the first.
    """

    config: TrainConfig
    frozen: Values
    pretrained: "Pretrained | None"
    corpus: Corpus
    blocks_per_epoch: int
    total_steps: int
    schedule: Schedule
    done: CompletedWork = field(default_factory=CompletedWork)
    expected_files: list[str] | None = None
    callbacks: Callbacks = field(default_factory=Callbacks)

    @property
    def blocks_per_step(self) -> int:
        return self.config.trainer.batch_size * self.config.trainer.grad_accum

    @property
    def block_size(self) -> int:
        return int(self.config.model.block_size)

    @property
    def tokens_per_step(self) -> int:
        return self.blocks_per_step * self.block_size

    @property
    def steps_left(self) -> int:
        return max(self.total_steps - self.done.steps, 0)

    @property
    def blocks_left(self) -> int:
        return self.steps_left * self.blocks_per_step

    @property
    def total_tokens(self) -> int:
        """Return the tokens of the run; earlier steps count with their own batch size."""
        return self.done.tokens + self.blocks_left * self.block_size

    @property
    def epochs(self) -> float:
        """Return the number of passes over the training data, which may be fractional."""
        return (self.done.blocks + self.blocks_left) / self.blocks_per_epoch


def validate_run(start: Start, *, is_first: bool = True) -> ValidatedRun:
    """Check the config of a start, open its data, and compare both with the saved state.

    Args:
        start: What is trained, and from which state.
        is_first: Whether this is the first rank, which has the callbacks.

    Raises:
        ConfigError: A setting is wrong, or a callback cannot be built or refuses its state.
        InputError: The data is missing, unusable or changed.
        CheckpointError: The saved state cannot be resumed.
    """
    if start.found is not None:
        start.found.state.require_resumable(start.found.path)
    config: TrainConfig = build_typed("train", start.frozen)
    frozen, pretrained = start.frozen, None
    if start.state is None and getattr(config.model, "init_from", None) is not None:
        from gpt2ckpt.training.pretrained import read_pretrained

        pretrained = read_pretrained(config.model, start.overrides)
        config.model = pretrained.config
        frozen = {**frozen, "model": dataclasses.asdict(config.model)}
    check_settings(config)
    _check_parts(start, config)
    corpus = open_corpus(config.data, config.model.vocab_size, config.model.block_size)
    expected = expected_files(start, corpus)
    blocks = count_blocks(len(corpus.train), config.model.block_size)
    steps = _total_steps(config.trainer, blocks, start.state)
    callbacks = callbacks_of(config) if is_first else Callbacks()
    callbacks.open(start)
    return ValidatedRun(
        config=config,
        frozen=frozen,
        pretrained=pretrained,
        corpus=corpus,
        blocks_per_epoch=blocks,
        total_steps=steps,
        schedule=build_schedule(config.schedule, steps),
        done=_done(start.state),
        expected_files=expected,
        callbacks=callbacks,
    )


def check_settings(config: TrainConfig) -> None:
    """Raise ConfigError for the first invalid setting."""
    check_config(config)
    build_schedule(config.schedule, config.trainer.max_steps or 1)


def finished_notice(start: Start, validated: ValidatedRun) -> str | None:
    """Return the message for a run that has reached its end; None for one that can train."""
    trainer = validated.config.trainer
    if start.state is None:
        return None
    step, by = start.state.step, stopped_by(start)
    is_evaluated = not trainer.eval_every or start.state.data.evaluated_step == step
    if by is not None and is_evaluated:
        message = (
            f"{start.directory} is finished: callback '{by.callback}' ended the run after "
            f"step {step} ({by.reason}). To train longer, change a key of it "
            f"(callback.{by.callback}.…) or resume without it (callback=[])."
        )
        return "\n".join([*start.skipped(), message])
    if step < validated.total_steps:
        return None
    if step == validated.total_steps and not is_evaluated:
        return None  # stopped before its last evaluation and its last save
    by_epochs = trainer.max_epochs and trainer.max_steps != validated.total_steps
    key = "trainer.max_epochs" if by_epochs else "trainer.max_steps"
    now = trainer.max_epochs if by_epochs else validated.total_steps
    of = f"of {validated.total_steps}" if step == validated.total_steps else "is past its end"
    message = (
        f"{start.directory or 'the run'} is finished: step {step} {of}. To train longer, raise "
        f"{key} (now {now})."
    )
    return "\n".join([*start.skipped(), message])


def _total_steps(
    trainer: TrainerConfig, blocks_per_epoch: int, state: CheckpointState | None
) -> int:
    """Return the steps of the run: the smaller of the limits max_steps and max_epochs."""
    ends = [trainer.max_steps] if trainer.max_steps else []
    if trainer.max_epochs:
        done, trained = (state.step, _blocks_trained(state)) if state else (0, 0)
        left = trainer.max_epochs * blocks_per_epoch - trained
        ends.append(done + math.ceil(max(left, 0) / (trainer.batch_size * trainer.grad_accum)))
    return min(ends, default=DEFAULT_STEPS)


def _done(state: CheckpointState | None) -> CompletedWork:
    if state is None:
        return CompletedWork()
    return CompletedWork(
        steps=state.step,
        blocks=state.data.position,
        tokens=state.tokens_seen,
        blocks_of_last_step=state.blocks_per_step or 0,
    )


def _check_parts(start: Start, config: TrainConfig) -> None:
    """Check that the model and the optimizer can be built, and can restore a saved state.

    The shapes are compared first, since a config from a file may describe a model of any size.

    Raises:
        CheckpointError: The saved state does not fit.
        PluginError: A plugin raised an exception.
    """
    is_of_plugin = not all(
        option_of(group, getattr(config, group)).is_built_in for group in ("model", "optimizer")
    )
    if start.found is None and is_of_plugin:
        from gpt2ckpt.model.build import build_on_meta
        from gpt2ckpt.optim.optimizers import build_optimizer

        build_optimizer(config.optimizer, build_on_meta(config.model))
    if start.found is None:
        return
    from gpt2ckpt.model.convert import check_shapes
    from gpt2ckpt.training.state import check_restorable

    if problem := check_shapes(config.model, start.found.state.model):
        raise CheckpointError(f"{start.found.path} cannot be used: {problem}. {OTHER_CHECKPOINT}")
    try:
        check_restorable(start.found.state, config)
    except CheckpointError as error:
        raise CheckpointError(f"{start.found.path} cannot be used: {error}") from error


def _blocks_trained(state: CheckpointState) -> int:
    """Return the token blocks trained on; skipped ones do not count towards max_epochs."""
    return state.data.position - state.data.anomalies.skipped_blocks
