"""Loads a trained model, from a checkpoint or pretrained weights, to sample or to evaluate."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gpt2ckpt.checkpoint.reading import is_checkpoint
from gpt2ckpt.config.checks import check_hardware
from gpt2ckpt.config.registry import build_model_config
from gpt2ckpt.config.schema import ModelShape
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.model.build import build_model
from gpt2ckpt.model.convert import check_shapes, load_pretrained
from gpt2ckpt.model.huggingface import is_huggingface
from gpt2ckpt.runs.layout import CHECKPOINTS, OUTPUTS
from gpt2ckpt.runs.plugins import require_plugins
from gpt2ckpt.runs.resume import SELECTORS, Scope, locate, no_run, read
from gpt2ckpt.training.hardware import Hardware, choose_hardware, prepare_process


@dataclass(frozen=True)
class Trained:
    """A model with trained weights on a device, and the source of the weights.

    Attributes:
        model: The model, in evaluation mode.
        shape: The config of the model.
        hardware: The device and precision.
        path: The file or folder of the weights.
        step: Steps of the checkpoint; None for pretrained weights.
        config: The frozen config of the checkpoint; None for pretrained weights.
        skipped: The damaged checkpoints that were skipped, each with the reason.
    """

    model: nn.Module
    shape: ModelShape
    hardware: Hardware
    path: Path
    step: int | None = None
    config: dict[str, Any] | None = None
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def is_pretrained(what: str) -> bool:
    """Return whether `what` is a Hugging Face folder or nanoGPT's ckpt.pt."""
    path = Path(what).expanduser()
    if what in SELECTORS:
        return False
    if path.is_dir():
        return is_huggingface(path) and not (path / CHECKPOINTS).is_dir()
    place = locate(what, Scope(OUTPUTS), key="ckpt") if path.is_file() else None
    return place is not None and not place.in_run and not is_checkpoint(path)


def load_trained(what: str, device: str, precision: str) -> Trained:
    """Return the model that `what` names.

    Args:
        what: A checkpoint, a run directory, a selector such as `best`, a Hugging Face GPT-2 folder,
            or nanoGPT's ckpt.pt.
        device: As in the config.
        precision: As in the config; `auto` is the precision that the checkpoint was trained with.

    Raises:
        CheckpointError: There is no valid checkpoint.
        InputError: The pretrained weights cannot be used.
        ConfigError: The device or the precision is unknown.
    """
    check_hardware(device, precision)
    if is_pretrained(what):
        path = Path(what).expanduser()
        config, weights = load_pretrained(path)
        hardware = choose_hardware(device, precision, None)
        return Trained(_build(config, weights, hardware), config, hardware, path)
    place = locate(what, Scope(OUTPUTS), key="ckpt")
    if place is None:
        raise no_run(OUTPUTS, "name one with ckpt=PATH")
    found = read(place)
    state = found.state
    require_plugins(found.path, state)
    config = build_model_config(state.config["model"])
    if problem := check_shapes(config, state.model):
        raise CheckpointError(
            f"{found.path} cannot be used: {problem}. Pass a different checkpoint"
        )
    hardware = choose_hardware(device, precision, None, state.environment)
    weights = state.model
    state.drop_tensors()  # releases the optimizer moments, which take most of the memory
    model = _build(config, weights, hardware)
    return Trained(
        model=model,
        shape=config,
        hardware=hardware,
        path=found.path,
        step=state.step,
        config=state.config,
        skipped=found.skipped,
    )


def _build(config: ModelShape, weights: dict[str, Tensor], hardware: Hardware) -> nn.Module:
    prepare_process(hardware, deterministic=True)
    model = build_model(config)
    model.load_state_dict(weights)
    return model.to(hardware.device).eval()
