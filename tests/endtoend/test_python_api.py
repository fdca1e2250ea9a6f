"""Programs that train, read runs and load models by `import gpt2ckpt`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import environment, latest, run, run_program, same_bits, succeed, tree

import gpt2ckpt

PUBLIC = """
import sys, gpt2ckpt
slow = {"torch", "hydra", "omegaconf", "numpy", "pandas"}
print(sorted(slow & set(sys.modules)), set(gpt2ckpt.__all__) <= set(dir(gpt2ckpt)))
gpt2ckpt.ConfigError
print(sorted(slow & set(sys.modules)))
gpt2ckpt.open_run
print("torch" in sys.modules)
print(all(getattr(gpt2ckpt, name).__doc__ for name in gpt2ckpt.__all__))
print(hasattr(gpt2ckpt, "trian"))
import gpt2ckpt.train  # a submodule, which replaces an attribute of the same name
from gpt2ckpt import train
print(callable(gpt2ckpt.train), callable(train))
"""


def test_import_is_fast_and_names_are_imported_at_their_first_use(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PUBLIC],
        **{"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True},
    )
    assert done.stdout.splitlines() == ["[] True", "[]", "False", "True", "False", "True True"]


STATE = """
import gc, json, logging, os, random, signal, sys, threading, warnings
import hydra, numpy, torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import VersionBase
from torch.utils import deterministic
import gpt2ckpt

def state():
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    loggers = [logging.getLogger(name) for name in (None, "gpt2ckpt", "host")]
    return {
        "handlers": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "wakeup": wakeup,
        "argv": list(sys.argv),
        "streams": (sys.stdout, sys.stderr, sys.stdout.errors),
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "logging": [(l.handlers[:], l.level, l.propagate, l.disabled) for l in loggers],
        "logging of all": (logging.root.manager.disable, logging.raiseExceptions),
        "warnings": (warnings.filters[:], warnings.showwarning),
        "excepthooks": (sys.excepthook, threading.excepthook),
        "hydra": (GlobalHydra.instance().hydra, HydraConfig.instance().cfg),
        "hydra version": VersionBase.instance().getbase(),
        # An idle thread that measures free space stays.
        "threads": {thread.name for thread in threading.enumerate()} - {"disk-space"},
        "files": len(os.listdir("/proc/self/fd")),
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch types": (torch.get_default_dtype(), torch.get_default_device()),
        "torch modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "torch precision": torch.get_float32_matmul_precision(),
        "torch deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            deterministic.fill_uninitialized_memory,
        ),
        "random numbers": (random.getstate(), numpy.random.get_state()[1].tolist(),
                           numpy.random.get_state()[2], torch.get_rng_state().tolist()),
    }

def check(after):
    present = state()
    print(after, [key for key in present if present[key] != before[key]], file=sys.stderr)

warnings.filterwarnings("error", message="of the host")
file = logging.FileHandler("host.log", mode="w")
logging.basicConfig(level=logging.ERROR, handlers=[file])
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
hydra.initialize(version_base="1.2", config_path=None)
torch.set_num_threads(2)
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
torch.set_float32_matmul_precision("medium")
torch.use_deterministic_algorithms(True, warn_only=True)
deterministic.fill_uninitialized_memory = True
random.seed(1), numpy.random.seed(2), torch.manual_seed(3)
overrides = json.loads(sys.argv[1])
with torch.inference_mode():
    before = state()
    run = gpt2ckpt.train([*overrides, "hydra.run.dir=run"])
    check("a training")
    gpt2ckpt.train([*overrides, "hydra.run.dir=run", "+resume=latest", "trainer.max_steps=9"])
    check("a resume")
    diverging = ["optimizer.lr=1e30", "schedule.warmup_steps=0", "trainer.grad_clip=0"]
    for wrong in ["optimizer.lrr=1"], ["data.train=gone"], ["dry_run=true"], diverging:
        try:
            gpt2ckpt.train([*overrides, *wrong])
        except gpt2ckpt.UserError as error:
            print(type(error).__name__)
        gc.collect()  # the error kept the frames of the training
        check(wrong)
    model, tokenizer = gpt2ckpt.load_model(run.checkpoint())
    check("a model")
    try:
        gpt2ckpt.load_model("gone.pt")
    except gpt2ckpt.CheckpointError:
        check("no model")
logging.error("the host's own log file is still open")
print(model.lm_head.weight.dtype, model.lm_head.weight.device.type, model.training)
"""


def test_training_leaves_the_program_as_it_was(token_data: Any, tmp_path: Path) -> None:
    """Handlers, streams, log, warnings, environment, Hydra, PyTorch, random numbers, threads."""
    overrides = [*token_data.overrides, "trainer.max_steps=6", "logger=tensorboard"]
    done = run_program(STATE, tmp_path, json.dumps(overrides))
    lines = done.err.splitlines()
    assert [line for line in lines if not line.endswith(" []")] == []
    assert len(lines) == 8
    for expected in ("ConfigError", "InputError", "NonFiniteLoss", "torch.float32 cpu False"):
        assert expected in done.out
    assert "of the host" not in (tmp_path / "run" / "train.log").read_text()
    host_log = (tmp_path / "host.log").read_text().splitlines()
    assert host_log[0].startswith("ERROR:gpt2ckpt.training.loop:stopped after step")
    assert host_log[1:] == ["ERROR:root:the host's own log file is still open"]
    # What the host had set did not reach the training.
    succeed(run("train", [*overrides, "hydra.run.dir=command", "trainer.max_steps=6"], tmp_path))
    resume = ["hydra.run.dir=command", "+resume=latest", "trainer.max_steps=9"]
    succeed(run("train", resume, tmp_path))
    ours, theirs = latest(tmp_path / "run"), latest(tmp_path / "command")
    assert same_bits(ours["model"], theirs["model"])
    assert same_bits(ours["optimizer"], theirs["optimizer"])
    assert same_bits(ours["rng"], theirs["rng"])


REFUSED = """
import json, sys, gpt2ckpt
overrides = json.loads(sys.argv[1])
for wrong in json.loads(sys.argv[2]):
    try:
        gpt2ckpt.train(wrong if isinstance(wrong, str) else [*overrides, *wrong])
    except gpt2ckpt.UserError as error:
        print(f"{type(error).__name__}: {error}")
"""
WRONG = [
    ("trainer.max_steps=3", "ConfigError: overrides must be a list of strings"),
    ([3], "ConfigError: overrides must be a list of strings"),
    (["-m", "optimizer.lr=1e-3,2e-3"], "ConfigError: -m starts a sweep"),
    (["optimizer.lr=1e-3,2e-3"], "ConfigError: optimizer.lr=1e-3,2e-3"),
    (["--help"], "ConfigError: --help is for the command line"),
    (["--cfg=job"], "ConfigError: --cfg=job is for the command line"),
    (["--version"], "ConfigError: --version is for the command line"),
    (["--confg-name=x"], "ConfigError: unrecognized arguments: --confg-name=x"),
    (["--lr=3"], "ConfigError: there is no flag --lr"),
    (["optimizer.lrr=1"], "ConfigError: there is no config key or group optimizer.lrr."),
    (["trainer.batch_size=0"], "ConfigError: trainer.batch_size is 0"),
    (["trainer.device=cuda:99"], "ConfigError: device=cuda:99"),
    (["data.train=gone.bin"], "InputError: "),
    (["+resume=gone.pt"], "CheckpointError: resume=gone.pt: there is no such file"),
    (["+resume=latest"], "CheckpointError: there is no checkpoint in outputs"),
    (["hydra.job.chdir=true"], "ConfigError: hydra.job.chdir=true"),
]


def test_errors_are_our_exceptions_and_write_nothing(token_data: Any, tmp_path: Path) -> None:
    wrong = json.dumps([given for given, _ in WRONG])
    done = run_program(REFUSED, tmp_path, json.dumps(token_data.overrides), wrong)
    lines = [line for line in done.out.splitlines() if "Error: " in line]
    for line, (given, expected) in zip(lines, WRONG, strict=True):
        assert line.startswith(expected), given
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]


RANKS = """
import os, gpt2ckpt
os.environ.update(RANK="1", LOCAL_RANK="1", WORLD_SIZE="2", MASTER_ADDR="a", MASTER_PORT="1")
try:
    gpt2ckpt.train([])
except gpt2ckpt.ConfigError as error:
    print(error)
"""


def test_several_ranks_are_refused(tmp_path: Path) -> None:
    assert "torchrun started 2 ranks" in run_program(RANKS, tmp_path).out


STARTS = """
import json, os, sys, gpt2ckpt
overrides = json.loads(sys.argv[1])
overrides += ["trainer.max_steps=4"]
preview = gpt2ckpt.train([*overrides, "hydra.run.dir=it's a=b, ü", "dry_run=true"])
exists, steps = preview.directory.exists(), preview.config["trainer"]["max_steps"]
print("> preview", exists, steps, preview.history())
run = gpt2ckpt.train([*overrides, "hydra.run.dir=it's a=b, ü"])
os.mkdir("elsewhere")
os.chdir("elsewhere")
print("> run", run.directory.name, run.is_finished, [e["step"] for e in run.history()])
os.chdir("..")
same = gpt2ckpt.train(["+resume=latest", "hydra.run.dir=it's a=b, ü"])
print("> finished", same.directory == run.directory, len(run.events()) )
longer = ["trainer.max_steps=6", "trainer.sample_prompt=it's {a}, 1=2"]
gpt2ckpt.train([f"+resume={run.directory}", *longer])
print("> resumed", [e["step"] for e in run.history()], run.is_finished)
other = gpt2ckpt.train([*overrides, "trainer.max_steps=2", "hydra.run.dir=it's a=b, ü"])
print("> protected", other.directory.name.startswith("it's a=b, ü_run_"))
one, two = (gpt2ckpt.train([*overrides, "trainer.max_steps=2", "name=twice"]) for _ in range(2))
print("> stamped", one.directory != two.directory, one.directory.parent.name)
print("> prompt", gpt2ckpt.open_run(run.directory).config["trainer"]["sample_prompt"])
forking = [f"+resume={run.checkpoint()}", "+fork=true", "hydra.run.dir=fork"]
fork = gpt2ckpt.train([*forking, "trainer.max_steps=7"])
print("> forked", fork.directory.name, [e["step"] for e in fork.history()])
"""


def test_starts_resumes_forks_and_special_characters(token_data: Any, tmp_path: Path) -> None:
    done = run_program(STARTS, tmp_path, json.dumps(token_data.overrides))
    shown = [line.removeprefix("> ") for line in done.out.splitlines() if line.startswith("> ")]
    printed = dict(line.split(" ", 1) for line in shown)
    assert printed["preview"] == "False 4 []"
    assert "dry run: nothing is written" in done.out
    assert printed["run"].endswith("True [1, 2, 3, 4]")
    assert printed["finished"] == "True 3"
    assert "is finished" in done.out
    assert printed["resumed"] == "[1, 2, 3, 4, 5, 6] True"
    assert printed["protected"] == "True"
    assert "CHECKPOINT DIRECTORY PROTECTION" in done.out
    assert printed["stamped"] == "True outputs"
    assert printed["prompt"] == "it's {a}, 1=2"
    assert printed["forked"] == "fork [7]"


THREAD = """
import json, sys, threading, gpt2ckpt
overrides = json.loads(sys.argv[1])
errors = []
def second(*_):
    for call in (lambda: gpt2ckpt.train(overrides), lambda: gpt2ckpt.load_model("run")):
        try:
            call()
        except gpt2ckpt.LockedError as error:
            errors.append(str(error))
import gpt2ckpt.training.loop as loop
between = loop.Loop._between_steps
def paused(self):
    between(self)
    if self.state.counters.step == 2 and not errors:
        other = threading.Thread(target=second)
        other.start()
        other.join()
        run = gpt2ckpt.open_run("run")
        print("live", [e["step"] for e in run.history()], run.is_finished)
loop.Loop._between_steps = paused
result = []
def first():
    result.append(gpt2ckpt.train([*overrides, "hydra.run.dir=run"]))
thread = threading.Thread(target=first)
thread.start()
thread.join()
print("ended", result[0].is_finished, len(errors), errors[0])
"""


def test_training_in_a_thread_warns_and_excludes_a_second_one(
    token_data: Any, tmp_path: Path
) -> None:
    overrides = json.dumps([*token_data.overrides, "trainer.max_steps=4"])
    out = run_program(THREAD, tmp_path, overrides).out
    assert "signals are not handled, since this is not the main thread" in out
    assert "signals are not handled" in (tmp_path / "run" / "train.log").read_text()
    assert "live [1, 2] False" in out
    assert "ended True 2 another training runs in this process" in out


LOGS = """
import json, logging, sys, gpt2ckpt
overrides = json.loads(sys.argv[1])
kind = sys.argv[2]
if kind == "info":
    logging.basicConfig(level=logging.INFO, format="host %(name)s %(message)s", stream=sys.stdout)
if kind == "warnings":
    logging.basicConfig(format="host %(message)s", stream=sys.stdout)
if kind == "quiet":
    logging.getLogger("gpt2ckpt").setLevel(logging.WARNING)
if kind == "ascii":
    sys.stdout.reconfigure(encoding="ascii", errors="strict")
    overrides, kind = [*overrides, "dry_run=true"], "ü→"
if kind == "closed":
    sys.stdout, sys.stderr = None, None
gpt2ckpt.train([*overrides, f"hydra.run.dir={kind}"])
"""


@pytest.mark.parametrize("kind", ["none", "info", "warnings", "quiet", "ascii", "closed"])
def test_log_goes_to_the_handlers_of_the_program_or_to_stdout(
    kind: str, token_data: Any, tmp_path: Path
) -> None:
    overrides = [*token_data.overrides, "trainer.max_steps=3"]
    done = run_program(LOGS, tmp_path, json.dumps(overrides), kind)
    out = done.out.splitlines()
    assert done.err == ""
    if kind == "ascii":
        assert "dry run" in done.out and "\\xfc->" in done.out
        return
    logged = (tmp_path / kind / "train.log").read_text()
    assert "step 3/3" in logged
    steps = [line for line in out if "step 3/3" in line]
    expected = {"none": 1, "info": 1, "warnings": 1, "quiet": 0, "closed": 0}
    assert len(steps) == expected[kind]
    assert all(line.startswith("host gpt2ckpt.") for line in steps) is (
        kind not in ("none", "warnings")
    )
    warned = [line for line in out if "never reached in 3 steps" in line]
    assert len(warned) == (kind != "closed")  # once, not on both


READS = """
import json, sys, gpt2ckpt
run = gpt2ckpt.open_run(sys.argv[1])
for path in [run.directory / "checkpoints", run.checkpoint("best"), str(run.directory)]:
    assert gpt2ckpt.open_run(path).directory == run.directory, path
for wrong in (sys.argv[2], "gone", "latest"):
    try:
        gpt2ckpt.open_run(wrong)
    except gpt2ckpt.UserError as error:
        print(type(error).__name__)
try:
    run.history(as_frame=True)
except gpt2ckpt.InputError as error:
    print(str(error).startswith("history(as_frame=True) needs pandas"))
try:
    run.checkpoint("bets")
except gpt2ckpt.ConfigError as error:
    print("Did you mean best?" in str(error))
print(json.dumps({
    "history": run.history(), "events": run.events(), "checkpoints": run.checkpoints(),
    "best": run.best_val_loss, "config": run.config, "finished": run.is_finished,
    "path": str(run.checkpoint("best")), "torch": "torch.nn" in sys.modules, "text": repr(run),
}))
"""


def test_run_shows_what_its_files_hold(reference: Any, tmp_path: Path) -> None:
    before = tree(reference.directory)
    out = run_program(READS, tmp_path, str(reference.directory), str(tmp_path)).out.splitlines()
    assert out[:-1] == ["InputError", "ConfigError", "CheckpointError", "True", "True"]
    shown = json.loads(out[-1])
    assert tree(reference.directory) == before
    lines = (reference.directory / "metrics.jsonl").read_text().splitlines()
    by_step = sorted((json.loads(line) for line in lines), key=lambda event: event["step"])
    assert shown["history"] == by_step
    events = (reference.directory / "events.jsonl").read_text().splitlines()
    assert shown["events"] == [json.loads(line) for line in events]
    listed = run("checkpoints", ["list", "--json", str(reference.directory)], tmp_path)
    assert shown["checkpoints"] == json.loads(succeed(listed).out)
    state = latest(reference.directory)
    assert shown["config"] == state["config"]
    assert shown["best"] == state["best_val_loss"]
    assert shown["finished"] is True
    assert shown["path"] == str(reference.directory / "checkpoints" / "best_model.pt")


def test_run_reads_a_damaged_history_and_a_run_without_checkpoints(
    token_data: Any, tmp_path: Path
) -> None:
    overrides = [*token_data.overrides, "trainer.max_steps=4", "trainer.eval_every=2"]
    succeed(run("train", [*overrides, "checkpoint=off", "hydra.run.dir=run"], tmp_path))
    opened = gpt2ckpt.open_run(tmp_path / "run")
    whole = opened.history()
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe not JSON\n" + path.read_bytes() + b'{"step": 5, "train_l')
    assert opened.history() == whole
    assert opened.checkpoints() == []
    assert opened.config["trainer"]["max_steps"] == 4
    assert opened.best_val_loss == min(e["val_loss"] for e in whole if "val_loss" in e)
    path.unlink()
    assert (opened.history(), opened.best_val_loss) == ([], None)
    with pytest.raises(gpt2ckpt.CheckpointError, match="there is no best checkpoint"):
        opened.checkpoint("best")
    (tmp_path / "run" / ".hydra" / "config.yaml").write_text("{")
    with pytest.raises(gpt2ckpt.InputError, match="records no config that can be read"):
        _ = gpt2ckpt.open_run(tmp_path / "run").config


MODEL = """
import sys, torch, gpt2ckpt
from gpt2ckpt.model.generate import generate
model, tokenizer = gpt2ckpt.load_model(sys.argv[1])
tokens = torch.tensor([tokenizer.encode("7 42")])
[new] = generate(model, tokens, 6, block_size=32, temperature=0)
print(tokenizer.decode([*tokens[0], *new]))
print(model.training, tuple(model(tokens).shape), model(tokens).dtype, tokenizer.vocab_size)
for text in ("hello", "7 64"):
    try:
        tokenizer.encode(text)
    except gpt2ckpt.InputError as error:
        print(error)
"""


def test_loaded_model_continues_as_the_command_does(reference: Any, tmp_path: Path) -> None:
    out = run_program(MODEL, tmp_path, str(reference.directory)).out.splitlines()
    words = [f"ckpt={reference.directory}", "prompt=7 42", "max_tokens=6", "temperature=0"]
    assert out[0] == succeed(run("sample", words, tmp_path)).out.splitlines()[-1]
    assert out[1] == "False (1, 2, 64) torch.float32 64"
    assert out[2].startswith("'hello' is not a list of token ids below 64")
    assert out[3].startswith("'7 64' is not a list of token ids below 64")


DAMAGED = """
import sys, torch, gpt2ckpt
from pathlib import Path
run = gpt2ckpt.open_run("run")
path = run.checkpoint()
content = gpt2ckpt.load_checkpoint(path)
plain = torch.load(path, weights_only=True)
weights, expected = content["model"], plain["model"]
print(content.keys() == plain.keys(), all(torch.equal(weights[k], expected[k]) for k in expected))
torch.set_default_device("meta")
print(gpt2ckpt.load_checkpoint(str(path))["model"]["transformer.wte.weight"].device)
torch.set_default_device(None)
raw = bytearray(path.read_bytes())
raw[len(raw) // 2] ^= 1
path.unlink()  # its other names keep the valid content
path.write_bytes(raw)
for wrong in (path, "gone.pt", "run"):
    try:
        gpt2ckpt.load_checkpoint(wrong)
    except gpt2ckpt.CheckpointError as error:
        print(error)
model, _ = gpt2ckpt.load_model("run")
name = "transformer.wte.weight"
print(torch.equal(model.state_dict()[name], weights[name]))
"""


def test_damaged_checkpoint_is_refused_or_replaced_by_the_next_best(
    token_data: Any, tmp_path: Path
) -> None:
    overrides = [*token_data.overrides, "trainer.max_steps=3", "hydra.run.dir=run"]
    succeed(run("train", overrides, tmp_path))
    done = run_program(DAMAGED, tmp_path)
    lines = done.out.splitlines()
    assert lines[:2] == ["True True", "cpu"]
    expected = ("run/checkpoints/latest.pt cannot be used", "gone.pt", "run is a directory")
    assert all(text in line for line, text in zip(lines[2:5], expected, strict=True))
    assert lines[5] == "True"
    assert "latest.pt" in done.err and "skipped" in done.err  # logged as a warning
