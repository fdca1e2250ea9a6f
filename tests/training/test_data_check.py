"""Resumes with data that has changed since the checkpoint was saved."""

import logging
import os
import platform
import shlex
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_helpers import events, start_of, train

from gpt2ckpt.checkpoint.reading import load
from gpt2ckpt.checkpoint.state import DataIdentity
from gpt2ckpt.data import digest
from gpt2ckpt.errors import InputError
from gpt2ckpt.training import data_check, session
from gpt2ckpt.training.data_check import DataChanged
from gpt2ckpt.training.step import Stepper
from gpt2ckpt.training.validate_run import validate_run

BOOK = "The quick brown fox jumps over the lazy dog. "
SIZE = 1_000_000  # tokens: more than the digest of the corpus covers completely


@pytest.fixture
def books(token_data: Any, tmp_path: Path) -> list[str]:
    """Train two steps on three texts in `run`; return the overrides."""
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"Book {number}. " + BOOK * 30)
    kept = [word for word in token_data.overrides if not word.startswith(("data", "model.vocab"))]
    words = [*kept, "data=text", f"data.train={tmp_path}/*.txt", "trainer.max_steps=2"]
    train(words, tmp_path / "run")
    return words


@pytest.fixture
def big(token_data: Any, tmp_path: Path) -> list[str]:
    """Return the overrides to train on a file of two megabytes in `tmp_path`, without training."""
    random = np.random.default_rng(0)
    random.integers(0, 64, SIZE).astype("<u2").tofile(tmp_path / "big.bin")
    return [*token_data.overrides, f"data.train={tmp_path / 'big.bin'}", "trainer.max_steps=2"]


def spoil(path: Path) -> None:
    """Change a token between the samples that the digest of the corpus covers."""
    with path.open("r+b") as file:
        file.seek(60_000)
        file.write(b"\1\0\2\0")


def refusal(words: list[str], run: Path) -> str:
    with pytest.raises(InputError) as refused:
        validate_run(start_of(["+resume=latest", "trainer.max_steps=4", *words], run))
    return str(refused.value)


def words_in(sentence: str, key: str) -> list[str]:
    """Return the override of `key` that a message suggests, split as a shell would."""
    return [word for word in shlex.split(sentence.replace(", ", " ")) if word.startswith(key)]


def resumed(words: list[str], run: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the notices about data of a resume with the overrides `words`."""
    start = start_of(["+resume=latest", "trainer.max_steps=4", *words], run)
    validate_run(start)
    return [line for line in start.notices() if line.startswith("data")]


def test_grown_data_is_accepted_when_named_as_the_message_says(
    books: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "3.txt").write_text("Another book. " + BOOK * 30)
    sentence = refusal([], tmp_path / "run")
    assert "the data has grown since the checkpoint was saved" in sentence
    assert "3.txt was added" in sentence
    [named] = words_in(sentence, "data.train")
    [line] = resumed([named], tmp_path / "run", caplog)
    assert line.startswith("data: text: 3 files") and "→ text: 4 files" in line
    train(["+resume=latest", "trainer.max_steps=4", named], tmp_path / "run")
    state = load(tmp_path / "run" / "checkpoints" / "latest.pt")
    assert (state["step"], len(state["data"]["files"])) == (4, 4)
    assert resumed(["trainer.max_steps=5"], tmp_path / "run", caplog) == []


def test_changed_data_is_refused_except_for_a_fork(
    books: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1.txt").write_text("Another book. " + BOOK * 30)
    for words in ([], books):  # a job script always passes its data
        sentence = refusal(words, tmp_path / "run")
        assert "the data has changed" in sentence and "1.txt has changed" in sentence
        assert "+fork=true" in sentence
    (tmp_path / "1.txt").unlink()
    assert "2.txt" not in (sentence := refusal(books, tmp_path / "run"))
    assert "1 files are missing" in sentence
    fork = start_of(["+resume=latest", "+fork=true", "trainer.max_steps=4"], tmp_path / "run")
    validate_run(fork)
    [line] = [line for line in fork.notices() if line.startswith("data: ")]
    assert "text: 3 files" in line and "→ text: 2 files" in line
    copied = tmp_path / "copied.pt"
    copied.write_bytes((tmp_path / "run" / "checkpoints" / "latest.pt").read_bytes())
    with pytest.raises(InputError, match="the data has changed"):  # without fork=true
        validate_run(start_of([f"+resume={copied}"], tmp_path / "elsewhere"))


def test_override_of_data_accepts_other_data(
    books: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1.txt").unlink()
    other = f"data.train='{tmp_path}/[02].txt'"
    assert any("data.train: " in line for line in resumed([other], tmp_path / "run", caplog))
    (tmp_path / "0.txt").write_text("Another book. " + BOOK * 30)
    sentence = refusal(["data.val_fraction=0.2"], tmp_path / "run")
    assert "the data has changed" in sentence, (
        "a different split does not make changed data acceptable"
    )


def test_embedded_text_of_other_python_names_both_versions(
    token_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [word for word in token_data.overrides if not word.startswith(("data", "model.vocab"))]
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.1")
    train([*kept, "trainer.max_steps=1"], tmp_path / "run")
    monkeypatch.undo()
    from pydoc_data import topics

    changed = {**topics.topics, "zzz": "A topic that this version does not have. " * 20}
    monkeypatch.setattr(topics, "topics", changed)
    sentence = refusal([], tmp_path / "run")
    assert f"Python 3.99.1, and this is Python {platform.python_version()}" in sentence
    assert "Resume with Python 3.99.1, or start a new run" in sentence and "+fork=true" in sentence


def test_change_between_sampled_tokens_is_detected(big: list[str], tmp_path: Path) -> None:
    train(big, tmp_path / "run")
    spoil(tmp_path / "big.bin")
    assert "big.bin has changed" in refusal(big, tmp_path / "run")


def test_checkpoint_without_file_digests_resumes_and_gets_them(
    big: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions saved only the digest of the corpus, which covers samples of large files."""
    old = lambda corpus, n: DataIdentity(digest=corpus.digest, blocks_per_epoch=n)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(session, "data_identity", old)
        patch.setattr(session.Session, "_check_data", lambda *_: None)
        train(big, tmp_path / "run")
    latest = tmp_path / "run" / "checkpoints" / "latest.pt"
    assert "files" not in load(latest)["data"]
    train(["+resume=latest", "trainer.max_steps=4"], tmp_path / "run")
    assert len(load(latest)["data"]["files"]) == 2
    with (tmp_path / "big.bin").open("ab") as file:
        file.write(bytes(4))
    assert "the data has changed" in refusal([], tmp_path / "run")


@pytest.fixture
def slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Delay the digests of files until some time after this event is set."""
    done = threading.Event()
    real = digest._digest
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digest, "AT_ONCE", 1000)
    monkeypatch.setattr(digest, "_digest", lambda tokens: done.wait(60) and real(tokens))
    return done


def test_slow_data_check_runs_in_background_and_blocks_saves(
    big: list[str],
    tmp_path: Path,
    slow_disk: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow_disk.set()
    run = tmp_path / "run"
    train(big, run)
    before = {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    assert len(load(run / "checkpoints" / "latest.pt")["data"]["files"]) == 2
    spoil(tmp_path / "big.bin")
    slow_disk.clear()
    threading.Timer(2.0, slow_disk.set).start()
    more = ["+resume=latest", "trainer.max_steps=6", "checkpoint.save_every=2"]
    with pytest.raises(DataChanged, match=r"big\.bin has changed. The steps after 2 may"):
        train(more, run)
    after = {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    assert after == before
    assert max(event["step"] for event in events(run)) <= 4, "it did not wait before the save"


def test_stop_during_data_check_saves_emergency_that_is_checked_again(
    big: list[str],
    tmp_path: Path,
    slow_disk: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow_disk.set()
    run = tmp_path / "run"
    train(big, run)
    spoil(tmp_path / "big.bin")
    slow_disk.clear()
    stopper = logging.Handler()
    monkeypatch.setattr(stopper, "emit", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(data_check.log, "handlers", [stopper])
    more = ["+resume=latest", "trainer.max_steps=6", "checkpoint.save_every=4"]
    with caplog.at_level(logging.INFO):
        assert train(more, run).stopped is signal.SIGTERM
    assert "this save waits until all data files are read" in caplog.text
    latest = load(run / "checkpoints" / "latest.pt")
    assert (latest["reason"], latest["step"]) == ("SIGTERM", 4)
    assert latest["data"]["unverified_since"] == 2
    slow_disk.set()
    with pytest.raises(InputError, match=r"The steps after 2 may have been trained on other data"):
        train(["+resume=latest"], run)


def test_file_rewritten_during_training_is_detected_before_next_save(
    big: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file has the same size and is never shorter, so no read fails."""
    run, real = tmp_path / "run", Stepper.step

    def step(self: Stepper, state: Any, position: int) -> Any:
        if state.counters.step == 4:
            spoil(tmp_path / "big.bin")
        return real(self, state, position)

    monkeypatch.setattr(Stepper, "step", step)
    more = ["trainer.max_steps=6", "checkpoint.save_every=2"]
    with pytest.raises(DataChanged, match=r"big\.bin has changed. The steps after 4 may"):
        train([*big, *more], run)
    assert load(run / "checkpoints" / "latest.pt")["step"] == 4
    assert not list((run / "checkpoints").glob("emergency_*"))


def test_touched_file_is_not_changed_data(
    big: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = tmp_path / "run", Stepper.step

    def step(self: Stepper, state: Any, position: int) -> Any:
        (tmp_path / "big.bin").touch()
        return real(self, state, position)

    monkeypatch.setattr(Stepper, "step", step)
    train([*big, "trainer.max_steps=4", "checkpoint.save_every=2"], run)
    assert load(run / "checkpoints" / "latest.pt")["step"] == 4


def test_best_model_is_reset_on_other_validation_blocks(token_data: Any, tmp_path: Path) -> None:
    words = [*token_data.overrides, "trainer.eval_every=2", "trainer.max_steps=2"]
    more = ["+resume=latest", "trainer.max_steps=4", "optimizer.lr=3"]  # changed to a worse loss
    for name, other, best in (("same", [], 2), ("other", ["trainer.eval_blocks=3"], 4)):
        train([*words, "schedule.warmup_steps=0"], tmp_path / name)
        train([*more, *other], tmp_path / name)
        state = load(tmp_path / name / "checkpoints" / "latest.pt")
        assert (state["step"], state["best_step"]) == (4, best)
    folder = tmp_path / "other" / "checkpoints"
    assert load(folder / "best_model.pt")["step"] == 4
    assert load(folder / "best_model_previous.pt")["step"] == 2


def test_batch_size_does_not_change_evaluated_blocks(token_data: Any, tmp_path: Path) -> None:
    words = [*token_data.overrides, "trainer.max_steps=1", "trainer.eval_every=1", "checkpoint=off"]
    words += ["optimizer.lr=1e-9"]
    losses = []
    for number, more in enumerate((["batch_size=1"], ["batch_size=8"], ["eval_blocks=6"])):
        given = ["trainer.eval_blocks=5", *(f"trainer.{word}" for word in more)]
        train([*words, *given], tmp_path / str(number))
        [event] = events(tmp_path / str(number), "val_loss")
        losses.append(event["val_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[0] != pytest.approx(losses[2], abs=1e-4)
