"""`python -m gpt2ckpt.drill [overrides]`: a recovery drill before a long run."""

from gpt2ckpt.signals.early import handle_signals_early

if __name__ == "__main__":
    handle_signals_early()  # before the imports: they take seconds

import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

from gpt2ckpt.application import CommandLine, ask_hydra, parse_command_line
from gpt2ckpt.config.aliases import key_for
from gpt2ckpt.config.checks import at_least
from gpt2ckpt.config.compose import Composed, compose_config, parse_overrides, sets
from gpt2ckpt.config.registry import all_keys, build_typed
from gpt2ckpt.config.replay import freeze, task_overrides
from gpt2ckpt.config.schema import DrillConfig
from gpt2ckpt.errors import ConfigError, InputError, UserError, nearest
from gpt2ckpt.exits import reported_errors
from gpt2ckpt.recovery_drill.drill_run import DrillRun
from gpt2ckpt.recovery_drill.filesystem_checks import FileSystem, examine
from gpt2ckpt.recovery_drill.results import Settings
from gpt2ckpt.recovery_drill.summary import file_system, lines, verdict
from gpt2ckpt.runs.command import command
from gpt2ckpt.runs.start import Start
from gpt2ckpt.training.validate_run import ValidatedRun, validate_run

TRAIN = "train"


def main() -> None:
    """Entry point of the command."""
    with reported_errors():
        line = parse_command_line("drill")
        own, words = split_overrides(line.overrides)
        if line.asks_hydra:
            ask_hydra(replace(line, overrides=own))
            return
        sys.exit(_drill(line, own, words))


def _drill(line: CommandLine, own: list[str], words: list[str]) -> int:
    """Everything that is wrong with the settings is found before a folder is made."""
    config: DrillConfig = build_typed("drill", compose_config("drill", own).values)
    at_least("steps", config.steps, 4)
    at_least("ranks", config.ranks, 1)
    _refuse_others(line)
    name = TRAIN if line.config_name == "drill" else line.config_name
    composed = compose_config(name, words, line.config_dir, TRAIN)
    values = composed.values
    if values["dry_run"]:
        raise ConfigError("a drill trains: leave dry_run out, or give it to gpt2ckpt.train")
    if values["resume"] is not None or values["fork"]:
        raise ConfigError("a drill trains a run of its own: leave resume and fork out")
    validated = validate_run(Start(freeze(values), task_overrides(words)))
    if not validated.config.checkpoint.enabled:
        raise ConfigError(
            "checkpoint.enabled=false saves nothing, so a crash costs the whole run: there is "
            "nothing to drill"
        )
    parent = Path(composed.hydra.run.dir).parent
    words = [*line.flags, *(word for word in words if not sets(word, "hydra.run.dir"))]
    with _scratch(parent) as scratch:
        found = _examine(scratch)
        if found.problems:
            print(*lines(file_system(found)), sep="\n")
            print(f"FAILED: do not train in {parent} before that is mended")
            return 1
        rehearsal = DrillRun(
            words=words,
            values=values,
            settings=_settings(composed, validated, config.ranks),
            scratch=scratch,
            steps=config.steps,
            tokens_per_step=validated.blocks_per_step * validated.config.model.block_size,
            say=_say,
        )
        drill = rehearsal.run(found)
        print(*verdict(drill), sep="\n")
        if not drill.passed:
            raise _Kept(scratch)
    return 0


class _Kept(UserError):
    """The drill failed, and what it made is left to be looked at."""

    def __init__(self, scratch: Path) -> None:
        trainings = [shlex.quote(str(scratch / name)) for name in ("killed", "undisturbed")]
        super().__init__(
            f"the drill failed; both trainings are kept in {scratch}: compare them with "
            f"`{command('checkpoints', 'diff', *trainings, '--tensors')}`, then delete them"
        )


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """The drill's own overrides, misspelt ones too, and those of the training."""
    ours = [field.name for field in fields(DrillConfig)]
    theirs = all_keys(TRAIN)
    own = []
    for word, override in zip(words, parse_overrides(words), strict=True):
        key = override.key_or_group
        is_slip = key not in theirs and nearest(key, ours, cutoff=0.75)
        if key in ours or (is_slip and not key_for(key, TRAIN)):
            own.append(word)
    return own, [word for word in words if word not in own]


def _refuse_others(line: CommandLine) -> None:
    if line.multirun:
        raise ConfigError("drill has no multirun: drill the settings of one job")
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "a drill starts its ranks itself: python -m gpt2ckpt.drill ranks=N without torchrun"
        )


def _settings(composed: Composed, validated: ValidatedRun, ranks: int) -> Settings:
    checkpoint = validated.config.checkpoint
    return Settings(
        run_parent=str(Path(composed.hydra.run.dir).parent),
        total_steps=validated.total_steps,
        steps_per_epoch=validated.blocks_per_epoch / validated.blocks_per_step,
        save_every=checkpoint.save_every,
        keep_rolling=checkpoint.keep_rolling,
        keep_emergency=checkpoint.keep_emergency,
        keep_epochs=checkpoint.keep_epochs,
        save_epochs=checkpoint.save_epochs,
        ranks=ranks,
    )


def _examine(scratch: Path) -> FileSystem:
    folder = scratch / "probe"
    try:
        folder.mkdir()
        found = examine(folder)
        folder.rmdir()
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror})") from error
    _say("tried the file system")
    return found


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A folder where the run would go; removed at the end unless the drill failed."""
    is_new = not parent.exists()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".drill_", dir=parent))
    except OSError as error:
        raise InputError(f"{parent} cannot be written ({error.strerror})") from error
    is_kept = False
    try:
        yield scratch
    except _Kept:
        is_kept = True
        raise
    except InputError as error:
        is_kept = True
        raise InputError(f"{error}; {scratch} is kept: look, then delete it") from error
    finally:
        if not is_kept:
            shutil.rmtree(scratch, ignore_errors=True)
            with contextlib.suppress(OSError):
                if is_new:
                    parent.rmdir()


def _say(sentence: str) -> None:
    print(f"drill: {sentence}", flush=True)


if __name__ == "__main__":
    main()
