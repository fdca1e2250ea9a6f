"""Checks config values for ranges and contradictions, which types cannot express.

gpt2ckpt/config/limits.py checks the optimizer, and the builder of a schedule its settings.
"""

import math
import re

from gpt2ckpt.config.schema import (
    CheckpointConfig,
    ModelConfig,
    TrainConfig,
    TrainerConfig,
)
from gpt2ckpt.errors import ConfigError, did_you_mean

DDP, FSDP = "ddp", "fsdp"
LARGEST_SEED = 2**64 - 1  # PyTorch's
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
SYNONYMS = {  # names of values in other programs
    **{"gpu": "cuda", "nvidia": "cuda", "metal": "mps", "apple": "mps"},
    **{"fp32": "float32", "single": "float32", "full": "float32", "32": "float32"},
    **{"fp16": "float16", "half": "float16", "16": "float16", "16-mixed": "float16"},
    **{"bf16": "bfloat16", "bf16-mixed": "bfloat16"},
}


def check_config(config: TrainConfig) -> None:
    """Raise ConfigError for the first value that is out of range or contradicts other values."""
    if not re.fullmatch(r"[\w.-]+", config.name):
        raise ConfigError(
            f"name={config.name!r} becomes part of a directory name: use letters, digits, . _ -"
        )
    at_least("seed", config.seed, 0)
    if config.seed > LARGEST_SEED:
        raise ConfigError(f"seed is {config.seed}; it must be at most {LARGEST_SEED}")
    for group in ("model", "data", "optimizer", "schedule"):
        if getattr(config, group) is None:
            raise ConfigError(f"there is no {group}: pass {group}=NAME or leave ~{group} out")
    if getattr(config.data, "train", "") is None:
        raise ConfigError("data.train is missing: pass a file or a glob, data.train=PATH")
    if isinstance(config.model, ModelConfig):
        check_model(config.model)
    _check_trainer(config.trainer)
    _check_checkpoint(config.checkpoint)


def at_least(key: str, value: float | None, least: float) -> None:
    """Raise ConfigError unless `value` is None or a finite number of at least `least`."""
    if value is not None and not (math.isfinite(value) and value >= least):
        raise ConfigError(f"{key} is {value}; it must be at least {least}")


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError with the nearest choice unless `value` is one of `choices`."""
    if value not in choices:
        hint = did_you_mean(SYNONYMS.get(value.lower(), value.lower()), choices)
        raise ConfigError(f"{key} is {value!r}; it must be one of {', '.join(choices)}.{hint}")


def check_hardware(device: str, precision: str, prefix: str = "") -> None:
    """Raise ConfigError for an unknown device or precision.

    `prefix` stands before the names of both keys in the message.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        numbered = re.fullmatch(r"(?:cuda|gpu)?[:_-]?(\d+)", device.lower())
        meant = f"cuda:{numbered[1]}" if numbered else SYNONYMS.get(device.lower(), device.lower())
        hint = did_you_mean(meant, (*DEVICES, meant) if numbered else DEVICES)
        raise ConfigError(
            f"{prefix}device is {device!r}; it must be auto, cpu, cuda, cuda:N or mps.{hint}"
        )
    one_of(f"{prefix}precision", precision, PRECISIONS)


def check_model(model: ModelConfig) -> None:
    """Raise ConfigError for a model shape that cannot be built."""
    for key in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
        at_least(f"model.{key}", getattr(model, key), 1)
    if model.n_embd % model.n_head:
        raise ConfigError(
            f"model.n_embd={model.n_embd} is not divisible by model.n_head={model.n_head}: "
            "set model.n_embd to a multiple of model.n_head"
        )
    one_of("model.gelu", model.gelu, ("tanh", "exact"))
    if not 0 <= model.dropout < 1:
        raise ConfigError(f"model.dropout is {model.dropout}; it must be at least 0 and below 1")


def _check_trainer(trainer: TrainerConfig) -> None:
    for key in ("max_steps", "max_epochs", "batch_size", "grad_accum", "log_every", "threads"):
        at_least(f"trainer.{key}", getattr(trainer, key), 1)
    for key in ("eval_blocks", "eval_steps", "spike_zscore"):
        at_least(f"trainer.{key}", getattr(trainer, key), 1)
    for key in ("grad_clip", "eval_every", "sample_every", "sample_tokens", "max_rollbacks"):
        at_least(f"trainer.{key}", getattr(trainer, key), 0)
    at_least("trainer.spike_window", trainer.spike_window, 2)
    one_of("trainer.on_bad_loss", trainer.on_bad_loss, ("stop", "rollback"))
    one_of("trainer.parallel", trainer.parallel, (DDP, FSDP))
    check_hardware(trainer.device, trainer.precision, "trainer.")


def _check_checkpoint(checkpoint: CheckpointConfig) -> None:
    for key in ("save_every", "keep_rolling", "keep_emergency", "keep_epochs"):
        at_least(f"checkpoint.{key}", getattr(checkpoint, key), 1)
    at_least("checkpoint.scrub_every", checkpoint.scrub_every, 0)
    at_least("checkpoint.scrub_mb_per_s", checkpoint.scrub_mb_per_s, 0.1)
    at_least("checkpoint.grace_seconds", checkpoint.grace_seconds, 0)
    at_least("checkpoint.hang_seconds", checkpoint.hang_seconds, 1)
