import json
import os
import pty
import struct
import subprocess
import sys
import textwrap

import pytest

from gpt2ckpt.loggers.wandb_offline import _records, recorded_steps

HEAD = """
import logging, os, pathlib, sys
logging.basicConfig(format="%(levelname)s %(message)s")
from gpt2ckpt.loggers.wandb import WandbLogger
run_dir = pathlib.Path(sys.argv[1])
def open_logger(resume, history=(), run_id="run1"):
    return WandbLogger(
        run_dir, project="gpt2ckpt", entity=None, tags=["a", "b"], run_id=run_id,
        name="gpt2_run", config={"model": {"n_layer": 2}}, resume=resume, history=history,
    )
def event(step, **values):
    return {"step": step, "time": 1.7e9, **(values or {"train_loss": float(step)})}
"""


@pytest.fixture
def environ(tmp_path):
    """Return an environment without a W&B account, settings or network."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    (tmp_path / "home").mkdir()
    (tmp_path / "run").mkdir()
    offline = {"HOME": str(tmp_path / "home"), "WANDB_ERROR_REPORTING": "false"}
    return {**kept, **offline, "PYTHONPATH": os.pathsep.join(sys.path)}


def run_script(body, tmp_path, environ, **options):
    command = [sys.executable, "-c", HEAD + textwrap.dedent(body), str(tmp_path / "run")]
    options = {"capture_output": True, "text": True, "timeout": 60, **options}
    return subprocess.run(command, env=environ, cwd=tmp_path, **options)


def history(tmp_path, run_id="run1"):
    """Return the history rows of each process as {key: value}, with the step as _step."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for path in sorted(tmp_path.glob(f"run/wandb/offline-run-*-{run_id}/*.wandb")):
        rows.append([])
        for data in _records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("history"):
                items = record.history.item
                row = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                rows[-1].append({**row, "_step": record.history.step.num})
    return rows


def metrics(tmp_path):
    """Return the metric definitions sent to W&B."""
    from wandb.proto import wandb_internal_pb2

    (path,) = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    records = map(wandb_internal_pb2.Record.FromString, _records(path.read_bytes()))
    return [record.metric for record in records if record.HasField("metric")]


def steps(tmp_path):
    return [[row["_step"] for row in rows] for rows in history(tmp_path)]


def test_offline_run_contains_every_event_and_sample(tmp_path, environ):
    body = """
        logger = open_logger(resume=False)
        logger.log(event(10, train_loss=4.5, lr=1e-3))
        logger.log(event(10, val_loss=4.25))
        logger.text(10, "a <b> c")
        logger.log(event(20, train_loss=float("nan")))
        logger.flush()
        logger.close()
    """
    done = run_script(body, tmp_path, {**environ, "WANDB_MODE": "offline"})
    assert done.returncode == 0, done.stderr
    ((first, second),) = history(tmp_path)
    assert (first["_step"], second["_step"]) == (10, 20)
    assert (first["train/loss"], first["train/lr"], first["val/loss"]) == (4.5, 1e-3, 4.25)
    (sample,) = tmp_path.glob("run/wandb/offline-run-*/files/media/html/*.html")
    assert "a &lt;b&gt; c" in sample.read_text()
    assert "WARNING" not in done.stderr


def test_tokens_seen_is_the_x_axis(tmp_path, environ):
    body = """
        logger = open_logger(resume=False)
        logger.log(event(10, train_loss=4.5, train_loss_mean=4.6, tokens_seen=640, mfu=0.4))
        logger.log(event(15, val_loss=2.0, best_val_loss=1.5, tokens_seen=960))
        logger.close()
    """
    done = run_script(body, tmp_path, {**environ, "WANDB_MODE": "offline"})
    assert done.returncode == 0, done.stderr
    ((first, second),) = history(tmp_path)
    assert (first["tokens_seen"], second["tokens_seen"]) == (640, 960)
    assert (first["train/loss_mean"], first["train/mfu"]) == (4.6, 0.4)
    assert (second["val/best_loss"], second["val/perplexity"]) == (1.5, pytest.approx(7.389056))
    assert {(m.name or m.glob_name, m.step_metric) for m in metrics(tmp_path)} == {
        ("tokens_seen", ""),
        ("train/*", "tokens_seen"),
        ("val/*", "tokens_seen"),
    }


def test_resumed_wandb_run_has_every_step_once(tmp_path, environ):
    """The first process logs up to step 40; the second resumes from step 20 and is killed."""
    offline = {**environ, "WANDB_MODE": "offline"}
    first = """
        logger = open_logger(resume=False)
        for step in (10, 20, 30, 40): logger.log(event(step))
        logger.close()
    """
    killed = """
        logger = open_logger(resume=True, history=[event(10), event(20)])
        for step in (30, 40, 50, 60): logger.log(event(step))
        os.kill(os.getpid(), 9)
    """
    last = """
        logger = open_logger(resume=True, history=[event(step) for step in (10, 20, 30, 40, 50)])
        for step in (60, 70): logger.log(event(step))
        logger.close()
    """
    run_script(first, tmp_path, offline)
    assert steps(tmp_path) == [[10, 20, 30, 40]]
    run_script(killed, tmp_path, offline)
    done = run_script(last, tmp_path, offline)
    assert done.returncode == 0, done.stderr
    assert sorted(step for part in steps(tmp_path) for step in part) == list(range(10, 80, 10))


@pytest.mark.parametrize("terminal", [False, True])
def test_without_an_account_wandb_is_offline_with_one_warning(tmp_path, environ, terminal):
    body = """
        logger = open_logger(resume=False)
        logger.log(event(10))
        logger.close()
    """
    if terminal:  # where W&B would ask for an account
        main, side = pty.openpty()
        with os.fdopen(side, "wb") as tty:
            done = run_script(
                body, tmp_path, environ, capture_output=False, stdin=tty, stdout=tty, stderr=tty
            )
        printed = os.read(main, 100_000).decode()
        os.close(main)
    else:
        done = run_script(body, tmp_path, environ, stdin=subprocess.DEVNULL)
        printed = done.stderr
    assert done.returncode == 0, printed
    assert printed.count("WARNING no W&B account found") == 1
    assert steps(tmp_path) == [[10]]


@pytest.mark.parametrize(
    ("variables", "netrc", "expected"),
    [
        ({}, "", "offline"),
        ({}, "machine example.org login user password x", "offline"),
        ({}, "machine api.wandb.ai login user password x", "None"),
        ({"WANDB_API_KEY": "x"}, "", "None"),
        ({"WANDB_MODE": "online"}, "", "None"),
        ({"WANDB_MODE": "disabled"}, "", "None"),
        (
            {"WANDB_BASE_URL": "https://example.org"},
            "machine example.org login u password x",
            "None",
        ),
    ],
)
def test_wandb_mode_follows_environment_and_netrc(tmp_path, environ, variables, netrc, expected):
    from types import SimpleNamespace

    from gpt2ckpt.loggers.wandb import _mode

    (tmp_path / "netrc").write_text(netrc)
    given = {**variables, "NETRC": str(tmp_path / "netrc")}
    settings = SimpleNamespace(
        mode=variables.get("WANDB_MODE", "online"),
        api_key=None,
        base_url=variables.get("WANDB_BASE_URL", "https://api.wandb.ai"),
    )
    assert str(_mode(settings, given)) == expected


def test_api_key_is_not_written_to_the_run_directory(tmp_path, environ):
    secret = "0123456789abcdef" * 2 + "01234567"
    body = """
        logger = open_logger(resume=False)
        logger.log(event(10))
        logger.close()
    """
    offline = {**environ, "WANDB_MODE": "offline", "WANDB_API_KEY": secret}
    done = run_script(body, tmp_path, offline)
    assert done.returncode == 0, done.stderr
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files and not any(secret.encode() in path.read_bytes() for path in files)


def test_truncated_offline_file_gives_the_steps_before(tmp_path, environ):
    body = """
        logger = open_logger(resume=False)
        for step in range(1, 400): logger.log(event(step))
        logger.close()
    """
    run_script(body, tmp_path, {**environ, "WANDB_MODE": "offline"})
    (path,) = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    whole = path.read_bytes()
    assert len(whole) > 32 * 1024  # more than one block of the format
    assert recorded_steps(tmp_path / "run" / "wandb", "run1") == set(range(1, 400))
    for length in range(0, len(whole), 997):
        path.write_bytes(whole[:length])
        found = recorded_steps(tmp_path / "run" / "wandb", "run1")
        assert found == set(range(1, len(found) + 1))


def test_offline_files_of_other_runs_are_ignored(tmp_path):
    assert recorded_steps(tmp_path / "wandb", "run1") == set()


def test_importing_the_module_does_not_import_wandb():
    script = "import sys, gpt2ckpt.loggers.wandb; print('wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n"


def leveldb_log(records):
    """Return records in LevelDB's log format after the 7-byte header of W&B."""
    out = bytearray(7)
    for data in records:
        rest, first = data, True
        while first or rest:
            room = 32 * 1024 - len(out) % (32 * 1024)
            if room < 7:
                out += bytes(room)
                continue
            chunk, rest = rest[: room - 7], rest[room - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}
            out += struct.pack("<IHB", 0, len(chunk), kind[first, not rest]) + chunk
            first = False
    return bytes(out)


@pytest.mark.parametrize("gap", range(10))
def test_records_across_block_boundaries_are_read(gap):
    """The first record leaves `gap` bytes of a block, the second spans three blocks."""
    records = [b"a" * (32 * 1024 - 14 - gap), b"b" * 70_000, b"c"]
    content = leveldb_log(records)
    assert list(_records(content)) == records
    assert list(_records(content[:-1])) == records[:2]
    assert list(_records(content[: 50 * 1024])) == records[:1]
