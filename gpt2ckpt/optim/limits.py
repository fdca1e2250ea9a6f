"""Range checks of the optimizer settings. Does not import torch, so that errors appear fast."""

from gpt2ckpt.config.schema import AdamWConfig, MuonConfig
from gpt2ckpt.errors import ConfigError

MAX_NEWTON_SCHULZ_STEPS = 99  # torch.optim.Muon refuses 100 and more, but only in its first step


def check_optimizer(config: AdamWConfig | MuonConfig) -> None:
    """Raise ConfigError for the first setting that is out of range, with its key and range."""
    _positive("lr", config.lr)
    _positive("eps", config.eps)
    if not config.weight_decay >= 0:
        raise _out_of_range("weight_decay", config.weight_decay, "0 or more")
    for beta in config.betas:
        if not 0 <= beta < 1:
            raise _out_of_range("betas", config.betas, "two numbers from 0 to below 1")
    if isinstance(config, MuonConfig):
        _positive("adamw_lr", config.adamw_lr)
        if not 0 <= config.momentum < 1:
            raise _out_of_range("momentum", config.momentum, "from 0 to below 1")
        if not 1 <= config.ns_steps <= MAX_NEWTON_SCHULZ_STEPS:
            wanted = f"from 1 to {MAX_NEWTON_SCHULZ_STEPS}"
            raise _out_of_range("ns_steps", config.ns_steps, wanted)


def _positive(key: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise _out_of_range(key, value, "a number above 0")


def _out_of_range(key: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f"optimizer.{key}={value} is out of range: it must be {wanted}")
