"""The console scripts: gpt2ckpt-NAME is `python -m gpt2ckpt.NAME`."""

from importlib import import_module

from gpt2ckpt.signals.early import handle_signals_early


def train() -> None:
    _run("train")


def evaluate() -> None:
    _run("evaluate")


def sample() -> None:
    _run("sample")


def prepare() -> None:
    _run("prepare")


def checkpoints() -> None:
    _run("checkpoints")


def drill() -> None:
    _run("drill")


def _run(name: str) -> None:
    handle_signals_early()  # before the imports: they take seconds
    import_module(f"gpt2ckpt.{name}").main()
