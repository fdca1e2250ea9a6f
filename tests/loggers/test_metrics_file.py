import errno
import json
import math
import os
import subprocess
import sys
import textwrap

import pytest

from gpt2ckpt.errors import InputError
from gpt2ckpt.loggers import metrics_file
from gpt2ckpt.loggers.metrics_file import MetricsFile, read, rewind, to_json


def event(step, **values):
    return {"step": step, "time": 1.7e9 + step, **values}


def write(path, steps):
    file = MetricsFile(path)
    for step in steps:
        file.log(event(step, train_loss=1 / (step + 3)))
    file.close()


def steps(path):
    return [event["step"] for event in read(path)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_numbers_are_read_back_bitwise(path):
    values = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2.0**53 + 2, 123456789]
    file = MetricsFile(path)
    for step, value in enumerate(values):
        file.log(event(step, train_loss=value))
    file.close()
    assert [repr(found["train_loss"]) for found in read(path)] == [repr(v) for v in values]


def test_non_finite_numbers_are_valid_json_and_read_back(path):
    logged = event(1, train_loss=math.nan, grad_norm=math.inf, lr=-math.inf)
    MetricsFile(path).log(logged)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    strict = json.loads(path.read_text(), parse_constant=refuse)
    assert strict["train_loss"] == "NaN" and strict["grad_norm"] == "Infinity"
    (found,) = read(path)
    assert math.isnan(found["train_loss"])
    assert (found["grad_norm"], found["lr"]) == (math.inf, -math.inf)


def test_each_event_is_readable_after_log_returns(path):
    file = MetricsFile(path)
    for step in (1, 2, 3):
        file.log(event(step))
        assert path.read_text().count("\n") == step == len(read(path))
    file.close()


def test_metrics_file_appends_to_an_existing_file(path):
    write(path, [1, 2])
    write(path, [3])
    assert steps(path) == [1, 2, 3]


def test_torn_line_does_not_damage_the_next_line(path):
    write(path, [1])
    with path.open("ab") as file:
        file.write(to_json(event(2)).encode()[:-5])
    write(path, [3])
    assert steps(path) == [1, 3]


def test_rewind_keeps_earlier_lines_byte_for_byte(path):
    write(path, [10, 20, 30, 40])
    lines = path.read_bytes().splitlines(keepends=True)
    rewind(path, 20)
    assert path.read_bytes() == b"".join(lines[:2])
    assert list(path.parent.iterdir()) == [path]


def test_rewind_removes_later_events_wherever_they_are(path):
    write(path, [10, 30, 20])
    rewind(path, 20)
    assert steps(path) == [10, 20]


def test_rewind_to_the_last_step_changes_nothing(path):
    write(path, [10, 20])
    before = path.stat()
    rewind(path, 20)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_rewind_without_a_file_does_nothing(path):
    rewind(path, 5)
    assert not path.exists()


def test_rewind_keeps_damaged_lines(path):
    write(path, [10, 20])
    with path.open("ab") as file:
        file.write(b'{"step": 30, "train_loss": 2.\n')
    write(path, [40])
    rewind(path, 10)
    assert b'{"step": 30, "train_loss": 2.\n' in path.read_bytes()
    assert steps(path) == [10]


def test_full_disk_loses_no_event_and_leaves_no_torn_line(path):
    """A limit on the file size makes the kernel write part of a line, then nothing."""
    script = """
        import pathlib, resource, signal, sys
        from gpt2ckpt.loggers.metrics_file import MetricsFile
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        path = pathlib.Path(sys.argv[1])
        file = MetricsFile(path)
        file.log({"step": 1})
        before = path.read_bytes()
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, unlimited[1]))
        for step in (2, 3):
            try:
                file.log({"step": step})
            except OSError:
                print("refused", path.read_bytes() == before)
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        file.log({"step": 4})
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "refused True\n" * 2, done.stderr
    assert path.read_text() == "".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 4))


def test_unwritable_metrics_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        MetricsFile(tmp_path / "nowhere" / "metrics.jsonl")


def test_rewind_truncates_in_place_but_not_a_snapshot(path):
    write(path, [10, 20, 30])
    inode = path.stat().st_ino
    rewind(path, 20)
    assert (path.stat().st_ino, steps(path)) == (inode, [10, 20])
    snapshot = path.with_name("snapshot")
    os.link(path, snapshot)
    rewind(path, 10)
    assert (steps(snapshot), steps(path)) == ([10, 20], [10])


def test_failed_rewind_is_repeated_before_the_next_write(path, monkeypatch):
    file = MetricsFile(path)
    for step in (1, 2, 3):
        file.log(event(step))

    def fail(*_):
        raise OSError(errno.EIO, "the device failed")

    with monkeypatch.context() as patch:
        patch.setattr(metrics_file, "rewind", fail)
        with pytest.raises(OSError, match="device failed"):
            file.rewind(2)
        for step in (3, 4):
            with pytest.raises(OSError, match="device failed"):
                file.log(event(step, lr=1.0))
        with pytest.raises(OSError, match="device failed"):
            file.rewind(3)
    assert steps(path) == [1, 2, 3]
    file.log(event(4, lr=2.0))
    assert [(found["step"], found.get("lr")) for found in read(path)] == [
        (1, None),
        (2, None),
        (3, 1.0),
        (4, 2.0),
    ]
    file.close()


def test_events_after_a_rewind_go_to_the_new_file(path):
    write(path, [10, 30, 20])
    file = MetricsFile(path)
    file.rewind(20)
    file.log(event(40))
    assert steps(path) == [10, 20, 40]
    file.close()
