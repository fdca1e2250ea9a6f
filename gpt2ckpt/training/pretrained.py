"""Pretrained weights for a new run, from Hugging Face, nanoGPT or a checkpoint of this project."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gpt2ckpt.checkpoint.reading import is_checkpoint, load_state
from gpt2ckpt.config.compose import parse_overrides
from gpt2ckpt.config.options import Effect
from gpt2ckpt.config.registry import build_model_config
from gpt2ckpt.config.replay import classify
from gpt2ckpt.config.schema import ModelConfig
from gpt2ckpt.errors import ConfigError, InputError
from gpt2ckpt.model.convert import load_pretrained
from gpt2ckpt.runs.layout import CHECKPOINTS
from gpt2ckpt.runs.plugins import require_plugins
from gpt2ckpt.runs.resume import Scope, locate, read

POSITIONS = "transformer.wpe.weight"
HUGGING_FACE, NANOGPT = "Hugging Face folder", "nanoGPT checkpoint"
TIED = "lm_head.weight"  # the same tensor as the token embedding


@dataclass(frozen=True)
class Source:
    """A file or folder of weights, its format, and the damaged files that were skipped."""

    path: Path
    kind: str
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pretrained:
    """Weights to start from, the model config that they fit, and their source.

    The remarks, for the start report, list changes to the weights and assumptions about them.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    source: Source
    remarks: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Return the file, the format, the numbers of tensors and parameters, and the remarks."""
        tensors = [tensor for name, tensor in self.weights.items() if name != TIED]
        loaded = (
            f"{self.source.path} ({self.source.kind}): {len(tensors):,} tensors, "
            f"{sum(tensor.numel() for tensor in tensors):,} parameters"
        )
        return ", ".join([loaded, *self.remarks, "no optimizer state"])


def read_pretrained(config: ModelConfig, overrides: list[str]) -> Pretrained:
    """Return the weights that `config.init_from` names; they determine the shape of the model.

    Args:
        config: The model group of the config.
        overrides: The user's overrides. A smaller model.block_size cuts the position embedding;
            model.gelu is used if the file does not record it.

    Raises:
        InputError: The weights cannot be used.
        ConfigError: An override contradicts the shape of the weights.
    """
    path = Path(str(config.init_from)).expanduser()
    shape, weights, source = _read(path)
    remarks = []
    given = {
        override.key_or_group.removeprefix("model.") for override in parse_overrides(overrides)
    }
    for key in [key for key in given if classify(f"model.{key}", {}) is Effect.SHAPE]:
        wanted, there = getattr(config, key), getattr(shape, key)
        if key == "gelu":  # nanoGPT's files do not record which form they were trained with
            shape = dataclasses.replace(shape, gelu=wanted)
        elif key == "block_size" and wanted < there:
            shape = dataclasses.replace(shape, block_size=wanted)
            remarks.append(f"positions cut from {there:,} to {wanted:,}")
            weights = {**weights, POSITIONS: weights[POSITIONS][:wanted]}
        elif wanted != there:
            raise ConfigError(
                f"model.{key}={wanted} contradicts {path}, which has {there}: remove model.{key}"
            )
    if source.kind == NANOGPT and "gelu" not in given:
        remarks.append(f"model.gelu={shape.gelu} assumed, since the file does not record it")
    settled = dataclasses.replace(shape, dropout=config.dropout, init_from=config.init_from)
    return Pretrained(settled, weights, source, tuple(remarks))


def _read(path: Path) -> tuple[ModelConfig, dict[str, Tensor], Source]:
    damaged: list[tuple[Path, str]] = []
    if (path / CHECKPOINTS).is_dir():
        place = locate(str(path), Scope(path.parent))
        assert place is not None  # only `auto` may name nothing
        found = read(place)
        path, state, damaged = found.path, found.state, found.skipped
        require_plugins(path, state)
    elif is_checkpoint(path):
        state = load_state(path)
    else:
        kind = HUGGING_FACE if path.is_dir() else NANOGPT
        return *load_pretrained(path), Source(path, kind)
    skipped = tuple(
        f"skipped {file}: {reason.removeprefix(f'{file} ')}" for file, reason in damaged
    )
    source = Source(path, f"gpt2ckpt checkpoint, step {state.step:,}", skipped)
    if kind := state.setting("model", "kind"):
        raise InputError(
            f"model.init_from={path} holds a model of the kind {kind!r}, not a GPT-2: to start a "
            "new run from its state, resume it with +fork=true"
        )
    return build_model_config(state.config["model"]), state.model, source
