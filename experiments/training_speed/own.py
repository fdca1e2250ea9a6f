"""gpt2ckpt with its default config, loader, step and optimizer."""

from collections.abc import Callable

import torch

from experiments.training_speed.shapes import Shape
from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.config.registry import build_typed
from gpt2ckpt.config.replay import freeze
from gpt2ckpt.config.schema import TrainConfig
from gpt2ckpt.data.corpus import open_corpus
from gpt2ckpt.data.loader import BlockLoader
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.optim.optimizers import build_optimizer
from gpt2ckpt.optim.schedule import build_schedule
from gpt2ckpt.parallel.ddp import ParallelLoss
from gpt2ckpt.training.hardware import Hardware, choose_hardware, prepare_process
from gpt2ckpt.training.rng import seed_everything
from gpt2ckpt.training.state import Counters, TrainingState
from gpt2ckpt.training.step import Stepper
from gpt2ckpt.training.validate_run import DEFAULT_STEPS


def read_config(shape: Shape) -> TrainConfig:
    """Return the config of `python -m gpt2ckpt.train` with the overrides of a shape."""
    values = compose_config("train", shape.overrides).values
    config: TrainConfig = build_typed("train", freeze(values))
    return config


def open_loader(config: TrainConfig) -> BlockLoader:
    """Return the training blocks in order, equal for every variant."""
    size = config.model.block_size
    corpus = open_corpus(config.data, config.model.vocab_size, size)
    return BlockLoader(corpus.train, size, config.seed)


def new_model(config: TrainConfig) -> GPT2:
    """Return the model with its initial weights, equal for every variant."""
    seed_everything(config.seed)
    return GPT2(config.model)


def choose(config: TrainConfig) -> Hardware:
    """Return the precision that `auto` selects on this machine."""
    return choose_hardware(config.trainer.device, config.trainer.precision, config.trainer.threads)


def build_step(shape: Shape) -> Callable[[], float]:
    """Return a function that trains the next step with the defaults and returns its loss."""
    config = read_config(shape)
    hardware = choose(config)
    prepare_process(hardware, deterministic=config.trainer.deterministic)
    model = new_model(config)
    optimizer = build_optimizer(config.optimizer, model)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainingState(model, optimizer, scaler, Counters())
    stepper = Stepper(ParallelLoss(model.loss), open_loader(config), hardware, config.trainer)
    schedule = build_schedule(config.schedule, total_steps=DEFAULT_STEPS)

    def step() -> float:
        optimizer.set_lr_scale(schedule(state.counters.step))
        loss = stepper.step(state, state.counters.position).loss
        state.counters.step += 1
        state.counters.position += stepper.blocks
        return loss

    return step
