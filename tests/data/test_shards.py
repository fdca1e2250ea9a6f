"""Shards have exact bytes, are written atomically, and contain the tokens of their text."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import preload
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2ckpt.config.schema import EmbeddedDataConfig, TextDataConfig, TokensDataConfig
from gpt2ckpt.data.corpus import open_corpus
from gpt2ckpt.data.shards import open_staging, publish_shards, shard_corpus
from gpt2ckpt.data.token_files import open_token_file
from gpt2ckpt.errors import ConfigError, InputError

ROOT = Path(__file__).parents[2]


def _u16(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.uint16)


def write_shards(
    splits: Mapping[str, Iterable[np.ndarray]], out: Path, shard_tokens: int
) -> list[Path]:
    with open_staging(out) as staging:
        return publish_shards(splits, staging, shard_tokens)


def test_shards_have_the_bytes_of_llm_c(tmp_path: Path) -> None:
    splits = {"train": [_u16(1, 2), _u16(3, 50256, 5)], "val": [_u16(7)]}
    paths = write_shards(splits, tmp_path / "deep" / "out", 3)
    assert [path.name for path in paths] == [
        "train_000000.bin",
        "train_000001.bin",
        "val_000000.bin",
    ]
    assert sorted(paths) == sorted((tmp_path / "deep" / "out").iterdir())
    content = paths[0].read_bytes()
    assert content[:12] == bytes.fromhex("88d83401 01000000 03000000")  # 20240520, 1, 3
    assert content[12:1024] == bytes(1012)
    assert content[1024:] == bytes.fromhex("0100 0200 0300")
    assert paths[1].read_bytes()[1024:] == bytes.fromhex("50c4 0500")


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), max_size=6),
    shard_tokens=st.integers(1, 12),
)
def test_shards_round_trip_to_the_same_tokens(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], shard_tokens: int
) -> None:
    whole = np.arange(sum(lengths), dtype=np.uint16)
    parts = np.split(whole, np.cumsum(lengths)[:-1]) if lengths else []
    paths = write_shards({"train": parts}, tmp_path_factory.mktemp("shards"), shard_tokens)
    read = [open_token_file(path, 50257)[:] for path in paths]
    assert [token for tokens in read for token in tokens.tolist()] == whole.tolist()
    assert all(len(tokens) == shard_tokens for tokens in read[:-1])


def test_output_folder_with_shards_is_refused_unchanged(tmp_path: Path) -> None:
    for name in ("train_000007.bin", "val_000000.bin"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_bytes(b"mine")
        with pytest.raises(InputError, match=rf"{folder} already contains shards \({name}\)"):
            write_shards({"train": [_u16(1)]}, folder, 10)
        assert [path.read_bytes() for path in folder.iterdir()] == [b"mine"]


def test_shard_created_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def tokens() -> Iterator[np.ndarray]:
        yield _u16(1)
        (tmp_path / "train_000000.bin").write_bytes(b"mine")

    with pytest.raises(InputError, match=r"already contains shards \(train_000000\.bin\)"):
        write_shards({"train": tokens()}, tmp_path, 10)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


def test_other_files_in_the_output_folder_are_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write_shards({"train": [_u16(1)]}, tmp_path, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "train_000000.bin"]


@pytest.mark.parametrize("shard_tokens", [0, -1, 2**31])
def test_shard_tokens_out_of_range_is_a_config_error(tmp_path: Path, shard_tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"shard_tokens={shard_tokens} must lie between"):
        shard_corpus(EmbeddedDataConfig(), str(tmp_path / "out"), shard_tokens)
    assert not (tmp_path / "out").exists()


def test_unwritable_output_folder_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file is a file: .*out=FOLDER"):
        write_shards({"train": [_u16(1)]}, tmp_path / "file", 10)
    with pytest.raises(InputError, match="cannot write shards: Not a directory"):
        write_shards({"train": [_u16(1)]}, tmp_path / "file" / "out", 10)


def test_failed_write_leaves_no_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good text " * 50)
    (tmp_path / "b.txt").write_bytes(b"bad \xff")
    config = TextDataConfig(train=str(tmp_path / "*.txt"))
    with pytest.raises(InputError, match=r"b\.txt: not UTF-8 at byte 4"):
        shard_corpus(config, str(tmp_path / "out"), 10)
    assert not (tmp_path / "out").exists()


def test_second_writer_is_refused(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing shards there"):
            write_shards({"train": [_u16(1)]}, tmp_path, 10)
    finally:
        os.close(descriptor)
    assert len(write_shards({"train": [_u16(1)]}, tmp_path, 10)) == 1


def test_next_run_removes_files_of_a_killed_writer(tmp_path: Path) -> None:
    code = (
        "import sys, time, numpy as np; from pathlib import Path\n"
        "from gpt2ckpt.data.shards import open_staging, publish_shards\n"
        "def tokens():\n"
        "    for number in range(100):\n"
        "        yield np.full(10, number, np.uint16)\n"
        "        time.sleep(60 if number == 50 else 0)\n"
        "with open_staging(Path(sys.argv[1])) as staging:\n"
        "    publish_shards({'train': tokens()}, staging, 100)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (tmp_path / ".shards.partial" / "train_000005.bin").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".shards.partial"]
    (path,) = write_shards({"train": [_u16(1, 2)]}, tmp_path, 100)
    assert list(tmp_path.iterdir()) == [path]


WRITE = (
    "import sys, numpy as np; from pathlib import Path\n"
    "from gpt2ckpt.data.shards import open_staging, publish_shards\n"
    "with open_staging(Path(sys.argv[1])) as staging:\n"
    "    publish_shards({'train': [np.full(30, 7, np.uint16)]}, staging, 10)\n"
)


@pytest.mark.parametrize("call", ["rename", "fsync", "unlink"])
def test_failure_while_publishing_leaves_no_shards(tmp_path: Path, call: str) -> None:
    faults, out = preload.build(tmp_path), tmp_path / "out"
    out.mkdir()
    pattern = {"rename": "/out/train_000001.bin$", "fsync": "/out$", "unlink": "/publishing$"}
    faults.set((call, preload.EIO, pattern[call]))
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(out)],
        **{"env": faults.environment, "cwd": ROOT, "capture_output": True, "text": True},
    )
    assert "InputError: " in done.stderr and "cannot write shards: Input/output" in done.stderr
    assert list(out.glob("*.bin")) == []
    assert len(write_shards({"train": [_u16(1)]}, out, 10)) == 1, "its leftovers are in the way"


def test_next_run_removes_shards_of_a_writer_killed_while_publishing(tmp_path: Path) -> None:
    faults, out = preload.build(tmp_path), tmp_path / "out"
    faults.set(("rename", -60, "/out/train_000001.bin$"))
    command = [sys.executable, "-c", WRITE, str(out)]
    process = subprocess.Popen(command, env=faults.environment, cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (out / "train_000000.bin").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    (path,) = write_shards({"train": [_u16(1, 2)]}, out, 100)
    assert list(out.iterdir()) == [path]


@pytest.mark.parametrize("own_validation", [False, True])
def test_prepared_shards_have_the_tokens_of_the_text(tmp_path: Path, own_validation: bool) -> None:
    (tmp_path / "a.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 40)
    (tmp_path / "b.txt").write_text("Another document, shorter.\n" * 10)
    text = TextDataConfig(train=str(tmp_path / "*.txt"), val_fraction=0.2)
    if own_validation:
        text.val = str(tmp_path / "b.txt")
    out = tmp_path / "out"
    summary = shard_corpus(text, str(out), 100)
    shards = TokensDataConfig(train=str(out / "train_*.bin"), val=str(out / "val_*.bin"))
    direct, prepared = open_corpus(text, 50257, 16), open_corpus(shards, 50257, 16)
    for one, two in ((direct.train, prepared.train), (direct.val, prepared.val)):
        assert one.read(0, len(one)).tolist() == two.read(0, len(two)).tolist()
    assert (summary.train_tokens, summary.val_tokens) == (len(direct.train), len(direct.val))
    assert sorted(out.iterdir()) == sorted(summary.shards)


def test_prepare_refuses_unusable_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="out is not set"):
        shard_corpus(EmbeddedDataConfig(), "???", 10)
    (tmp_path / "a.txt").write_text("tiny")
    with pytest.raises(InputError, match="2 training and 0 validation tokens"):
        shard_corpus(TextDataConfig(train=str(tmp_path / "a.txt")), str(tmp_path / "out"), 10)
    assert not (tmp_path / "out").exists()
