"""The console scripts: gpt2ckpt-NAME is `python -m gpt2ckpt.NAME`."""

from functools import partial
from importlib import import_module

from gpt2ckpt.signals.early import handle_signals_early


def _run(name: str) -> None:
    handle_signals_early()  # before the imports: they take seconds
    import_module(f"gpt2ckpt.{name}").main()


train = partial(_run, "train")
evaluate = partial(_run, "evaluate")
sample = partial(_run, "sample")
prepare = partial(_run, "prepare")
checkpoints = partial(_run, "checkpoints")
drill = partial(_run, "drill")
