"""A run with plugins: saved, resumed and recorded, and refused where a plugin does not fit."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, Done, events, latest, run, same_bits, succeed, tree

PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^`([\w.]+)`:\n\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
TRACE = "\nfrom pathlib import Path\nPath(__file__).with_name('imported').touch()\n"
ON = "plugins=[lion,inverse_sqrt]"


def write_plugins(folder: Path) -> None:
    for name in ("lion.py", "inverse_sqrt.py"):
        assert len(FILES[name].splitlines()) <= 40
        (folder / name).write_text(FILES[name])


@pytest.fixture(scope="module")
def trained(token_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two plugins and two runs, one of which was interrupted at step 4."""
    folder = tmp_path_factory.mktemp("plugins")
    write_plugins(folder)
    overrides = [*token_data.overrides, ON, "optimizer=lion", "schedule=inverse_sqrt"]
    succeed(run("train", [*overrides, "trainer.max_steps=8", "hydra.run.dir=whole"], folder))
    succeed(run("train", [*overrides, "trainer.max_steps=4", "hydra.run.dir=parts"], folder))
    more = [ON, "+resume=latest", "trainer.max_steps=8", "hydra.run.dir=parts"]
    succeed(run("train", more, folder))
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """Return a folder with a copy of the run and the plugins, which leave a trace if imported."""
    shutil.copytree(trained / "whole", tmp_path / "run", symlinks=True)
    for name in ("lion.py", "inverse_sqrt.py"):
        (tmp_path / name).write_text(FILES[name] + TRACE)
    return tmp_path


def shown_commands(section: str) -> list[tuple[list[str], list[str]]]:
    """Return the commands of a section of the page, each with the lines that it prints."""
    text = PAGE.partition(f"## How do I add {section}?")[2].partition("\n## ")[0]
    [console] = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    commands = [part.splitlines() for part in console.replace("\\\n", "").split("$ ")[1:]]
    return [(shlex.split(lines[0]), lines[1:]) for lines in commands]


def without_numbers(line: str) -> str:
    return " ".join(re.sub(r"\d[\d,.e+-]*", "N", line).split())


@pytest.mark.parametrize("section", ["an optimizer", "a schedule"])
def test_commands_of_the_page_print_what_it_shows(section: str, tmp_path: Path) -> None:
    write_plugins(tmp_path)
    for words, shown in shown_commands(section):
        done = run(words[2].removeprefix("gpt2ckpt."), words[3:], tmp_path)
        printed = iter([without_numbers(line) for line in (done.err + done.out).splitlines()])
        for line in shown:
            assert without_numbers(line) in printed, (line, done)
        assert (done.code != 0) == any(line.startswith("error: ") for line in shown)


def resume(folder: Path, *more: str) -> Done:
    words = ["+resume=latest", "hydra.run.dir=run", "trainer.max_steps=10", *more]
    return run("train", words, folder)


def assert_refused(folder: Path, code: int, *words: str) -> str:
    """Assert that a resume fails with this code, and that nothing changes; return the message."""
    before = tree(folder / "run")
    done = resume(folder, *words)
    assert done.code == code and tree(folder / "run") == before, done
    return done.message


def test_resumed_run_ends_bitwise_as_an_uninterrupted_one(trained: Path) -> None:
    whole, parts = latest(trained / "whole"), latest(trained / "parts")
    assert whole["step"] == parts["step"] == 8
    assert all(same_bits(whole[key], parts[key]) for key in ("model", "optimizer", "rng"))
    assert events(trained / "whole") == events(trained / "parts")


def test_checkpoint_records_the_plugins_and_the_tools_show_them(trained: Path) -> None:
    lion, schedule = latest(trained / "whole")["plugins"]
    assert (lion["module"], lion["options"], lion["version"]) == ("lion", ["optimizer.lion"], None)
    assert schedule["options"] == ["schedule.inverse_sqrt"] and len(lion["source"]) == 32
    assert "plugins" not in latest(trained / "whole")["config"]
    for name in ("lion.py", "inverse_sqrt.py"):
        (trained / name).rename(trained / f"{name}.away")  # the tools import no plugin
    shown = succeed(run("checkpoints", ["show", "whole"], trained)).out
    command = succeed(run("checkpoints", ["resume-command", "whole"], trained)).out
    diff = succeed(run("checkpoints", ["diff", "whole", "parts"], trained)).out
    for name in ("lion.py", "inverse_sqrt.py"):
        (trained / f"{name}.away").rename(trained / name)
    assert "- module: lion\n  options:\n  - optimizer.lion\n" in shown
    assert "gpt2ckpt.train 'plugins=[lion,inverse_sqrt]' +resume=" in command
    assert "optimizer=lion" in command and "schedule.cooldown_steps=0" in command
    assert "plugins" not in diff


@pytest.mark.parametrize(
    "words",
    [
        ["train", "+resume=run", "trainer.max_steps=10"],
        ["evaluate", "ckpt=run"],
        ["sample", "ckpt=run"],
    ],
)
def test_plugin_that_is_not_switched_on_is_named_and_not_imported(
    copy: Path, words: list[str]
) -> None:
    before = tree(copy)
    done = run(words[0], words[1:], copy)
    assert done.code == 2
    assert done.message == (
        "run/checkpoints/latest.pt uses plugins that are not switched on (optimizer lion, "
        "schedule inverse_sqrt): add plugins=[lion,inverse_sqrt]"
    )
    assert tree(copy) == before and not (copy / "imported").exists()


def test_evaluate_and_sample_with_the_plugins(copy: Path) -> None:
    assert '"val_loss"' in succeed(run("evaluate", [ON, "ckpt=run"], copy)).out
    succeed(run("sample", [ON, "ckpt=run", "max_tokens=2", "prompt="], copy))
    assert (copy / "imported").exists()


def test_changed_and_renamed_plugin_is_reported_like_a_changed_key(copy: Path) -> None:
    done = succeed(resume(copy, ON, "dry_run=true"))
    assert re.search(r"^plugin lion: source \w{8} → source \w{8}  \(changes", done.out, re.M)
    (copy / "lion.py").rename(copy / "renamed.py")
    done = succeed(resume(copy, "plugins=[renamed,inverse_sqrt]", "dry_run=true"))
    assert "plugin of optimizer.lion: lion → renamed  (changes the trajectory)" in done.out


def test_renamed_option_is_refused(copy: Path) -> None:
    (copy / "lion.py").write_text(FILES["lion.py"].replace('"lion"', '"lion2"'))
    message = assert_refused(copy, 2, ON)
    assert "plugin lion, which is switched on but no longer has it" in message


def test_state_that_does_not_fit_is_refused(copy: Path) -> None:
    text = (
        FILES["lion.py"]
        .replace("state.setdefault", "state.get")
        .replace("weight.sub_", "state['count'] = state['count'] + 1 if state else 1; weight.sub_")
    )
    (copy / "lion.py").write_text(text.replace("mean, beta1", "mean + 0, beta1"))
    message = assert_refused(copy, 1, ON)
    assert "the saved state does not fit: optimizer 'lion' (plugin lion) raised KeyErr" in message


FAILURES = {
    "a builder": ("    groups =", "    raise ValueError('boom')\n    groups ="),
    "a step": ("                mean.lerp_", "                raise ValueError('boom')\n    #"),
    "no optimizer": ("    return Lion(", "    return print("),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_plugin_that_raises_is_named(token_data: Any, tmp_path: Path, failure: str) -> None:
    write_plugins(tmp_path)
    old, new = FAILURES[failure]
    (tmp_path / "lion.py").write_text(FILES["lion.py"].replace(old, new))
    words = [*token_data.overrides, ON, "optimizer=lion", "trainer.max_steps=3"]
    done = run("train", words, tmp_path)
    assert done.code == 1
    what = "TypeError" if failure == "no optimizer" else "ValueError: boom"
    assert f"optimizer 'lion' (plugin lion) raised {what}" in done.err


def test_schedule_that_raises_ends_the_run_with_an_emergency_checkpoint(
    token_data: Any, tmp_path: Path
) -> None:
    write_plugins(tmp_path)
    text = FILES["inverse_sqrt.py"].replace("now = step + 1", "now = step + 1 / (step != 2)")
    (tmp_path / "inverse_sqrt.py").write_text(text)
    words = [*token_data.overrides, ON, "schedule=inverse_sqrt", "trainer.max_steps=4"]
    done = run("train", [*words, "hydra.run.dir=run"], tmp_path)
    message = "schedule 'inverse_sqrt' (plugin inverse_sqrt) raised ZeroDivisionError"
    assert done.code == 1 and message in done.err
    assert latest(tmp_path / "run")["step"] == 2


def test_import_error_is_one_message_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_like_this\n")
    before = tree(tmp_path)
    done = run("train", ["plugins=[broken]"], tmp_path)
    assert done.code == 2 and "plugin broken cannot be imported, in broken.py:1: " in done.message
    assert {k: v for k, v in tree(tmp_path).items() if "__pycache__" not in k} == before


def test_parallel_sweep_records_the_plugins_of_each_job(token_data: Any, tmp_path: Path) -> None:
    write_plugins(tmp_path)
    words = ["-m", *token_data.overrides, ON, "optimizer=lion", "seed=1,2", "trainer.max_steps=2"]
    words += ["trainer.eval_every=2", "trainer.eval_steps=1"]
    words += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
    done = succeed(run("train", words, tmp_path))
    recorded = [latest(tmp_path / "sweep" / job)["plugins"] for job in ("0", "1")]
    assert recorded[0] == recorded[1] and len(recorded[0][0]["source"]) == 32
    assert "to resume it for longer: " in done.out and "'plugins=[lion,inverse_sqrt]'" in done.out
