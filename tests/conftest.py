"""Fixtures of several packages: a small data set of tokens, one thread, no time limits."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.config_store import ConfigStore
from hypothesis import settings

from gpt2ckpt.config import plugins
from gpt2ckpt.config.options import OPTIONS, PLUGINS

settings.register_profile("patient", deadline=None)  # a busy machine is no bug
settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-golden",
        action="store_true",
        help="rewrite the golden losses after an intended change",
    )
    parser.addoption(
        "--crash-states",
        type=int,
        default=400,
        help="number of crash states to rebuild and check",
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: small models are ten times slower with several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def restored_plugins() -> Iterator[None]:
    """Remove the plugins that a test has loaded, and the modules that it has imported for them."""
    before = {group: dict(options) for group, options in OPTIONS.items()}
    known, loaded = set(sys.modules), dict(PLUGINS)
    yield
    for group, options in before.items():
        for name in set(OPTIONS[group]) - set(options):
            ConfigStore.instance().repo.get(group, {}).pop(f"{name}.yaml", None)
        OPTIONS[group].clear()
        OPTIONS[group].update(options)
    for name in set(sys.modules) - known:
        path = getattr(sys.modules[name], "__file__", None) or ""
        is_library = name.partition(".")[0] in sys.stdlib_module_names or "site-packages" in path
        if not is_library and not name.startswith("gpt2ckpt"):
            del sys.modules[name]
    PLUGINS.clear()
    PLUGINS.update(loaded)
    plugins._installed.cache_clear()


VOCABULARY = 64
BLOCK = 32


@dataclass(frozen=True)
class TokenData:
    """Token files with 62 blocks of 32 tokens for training, and 21 for validation."""

    train: Path
    val: Path

    @property
    def overrides(self) -> list[str]:
        """Return overrides for training a very small model on one thread, without loggers."""
        return [
            *("data=tokens", f"data.train={self.train}", f"data.val={self.val}"),
            *("model.n_layer=2", "model.n_embd=32", "model.n_head=2"),
            *(f"model.block_size={BLOCK}", f"model.vocab_size={VOCABULARY}"),
            *("trainer.batch_size=2", "trainer.eval_every=0", "trainer.sample_every=0"),
            *("trainer.device=cpu", "trainer.precision=float32", "trainer.threads=1"),
            *("trainer.log_every=1", "schedule.warmup_steps=5", "logger=none"),
        ]


@pytest.fixture(scope="session")
def token_data(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    """Return tokens that mostly depend on the previous token, so that a model can learn.

    Integer arithmetic makes them equal on every machine and with every version of NumPy.
    """
    folder = tmp_path_factory.mktemp("tokens")
    tokens, state = [0], 12345
    for _ in range(2000 + 700):
        state = (state * 1103515245 + 12345) % 2**31
        noise = (state >> 16) % VOCABULARY
        tokens.append(noise if noise < 12 else (tokens[-1] * 5 + 7) % VOCABULARY)
    data = TokenData(folder / "train.bin", folder / "val.bin")
    np.array(tokens[:2000], dtype="<u2").tofile(data.train)
    np.array(tokens[2000:], dtype="<u2").tofile(data.val)
    return data
