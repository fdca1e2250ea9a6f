"""Range checks of the built-in optimizers' settings, which types do not catch."""

from collections.abc import Sequence

from gpt2ckpt.errors import ConfigError

MAX_NEWTON_SCHULZ_STEPS = 99  # torch.optim.Muon refuses 100 and more, but only in its first step


def check_adamw(lr: float, weight_decay: float, betas: Sequence[float], eps: float) -> None:
    """Raise ConfigError with the first wrong key, its value and its range."""
    _positive("lr", lr)
    _positive("eps", eps)
    if not weight_decay >= 0:
        raise _out_of_range("weight_decay", weight_decay, "0 or more")
    if len(betas) != 2:
        raise ConfigError(f"optimizer.betas is {betas}; it must be two numbers")
    for beta in betas:
        if not 0 <= beta < 1:
            raise _out_of_range("betas", betas, "two numbers from 0 to below 1")


def check_muon(adamw_lr: float, momentum: float, ns_steps: int) -> None:
    """Raise ConfigError with the first wrong key that AdamW does not have."""
    _positive("adamw_lr", adamw_lr)
    if not 0 <= momentum < 1:
        raise _out_of_range("momentum", momentum, "from 0 to below 1")
    if not 1 <= ns_steps <= MAX_NEWTON_SCHULZ_STEPS:
        raise _out_of_range("ns_steps", ns_steps, f"from 1 to {MAX_NEWTON_SCHULZ_STEPS}")


def _positive(key: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise _out_of_range(key, value, "a number above 0")


def _out_of_range(key: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f"optimizer.{key}={value} is out of range: it must be {wanted}")
