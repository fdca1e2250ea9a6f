"""A trained model out of a checkpoint, to sample from or to evaluate."""

from dataclasses import dataclass
from typing import Any

from gpt2ckpt.checkpoint.store import Found
from gpt2ckpt.config.checks import check_hardware
from gpt2ckpt.config.registry import build_model_config
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.model.convert import check_shapes
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.runs.layout import OUTPUTS
from gpt2ckpt.runs.resume import Scope, locate, no_run, read
from gpt2ckpt.training.hardware import Hardware, choose_hardware, prepare_process


@dataclass(frozen=True)
class Trained:
    """A model with its weights on a device, and the frozen config that it was trained with."""

    model: GPT2
    hardware: Hardware
    config: dict[str, Any]
    found: Found


def load_trained(what: str, device: str, precision: str) -> Trained:
    """The model that `what` names: a file, a run directory or a selector such as `best`.

    Raises CheckpointError if there is none that is valid, ConfigError for an unknown device.
    """
    check_hardware(device, precision)
    place = locate(what, Scope(OUTPUTS), key="ckpt")
    if place is None:
        raise no_run(OUTPUTS, "name one with ckpt=PATH")
    found = read(place)
    config = build_model_config(found.state["config"]["model"])
    if problem := check_shapes(config, found.state["model"]):
        raise CheckpointError(f"{found.path} cannot be used: {problem}")
    hardware = choose_hardware(device, precision, None, found.state["environment"])
    prepare_process(hardware, deterministic=True)
    model = GPT2(config)
    model.load_state_dict(found.state["model"])
    for key in ("model", "optimizer"):
        del found.state[key]  # copied or not needed: held, they would take most of the memory
    model.to(hardware.device).eval()
    return Trained(model, hardware, found.state["config"], found)
