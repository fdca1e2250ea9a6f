"""Train GPT-2 from scratch, configured by Hydra, without ever losing a run."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2ckpt.api import Run, load_checkpoint, load_model, open_run, train
    from gpt2ckpt.data.tokenizer import Tokenizer
    from gpt2ckpt.errors import (
        CheckpointError,
        ConfigError,
        InputError,
        LockedError,
        UserError,
    )

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "InputError",
    "LockedError",
    "Run",
    "Tokenizer",
    "UserError",
    "load_checkpoint",
    "load_model",
    "open_run",
    "train",
]


def __getattr__(name: str) -> Any:
    """Return a public name, importing its module at the first use."""
    if name == "train":
        return import_module("gpt2ckpt.train")  # the module of the command, which is callable
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "errors" if name.endswith("Error") else "api"
    value = getattr(import_module(f"gpt2ckpt.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return sorted({*globals(), *__all__})
