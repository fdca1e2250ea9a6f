"""`python -m gpt2ckpt.drill [overrides]`: run a recovery drill before a long run."""

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
from gpt2ckpt.config.compose import compose_config, parse_overrides, sets
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
from gpt2ckpt.training.validate_run import validate_run

TRAIN = "train"


def main() -> None:
    """Run the command; its exit code is 1 if the drill failed."""
    with reported_errors():
        line = parse_command_line("drill")
        own, overrides = split_overrides(line.overrides)
        if line.asks_hydra:
            ask_hydra(replace(line, overrides=own))
            return
        sys.exit(_drill(line, own, overrides))


def _drill(line: CommandLine, own: list[str], overrides: list[str]) -> int:
    """Check all settings before a folder is created, then run the drill; return the exit code."""
    config: DrillConfig = build_typed("drill", compose_config("drill", own).values)
    at_least("steps", config.steps, 4)
    at_least("ranks", config.ranks, 1)
    _refuse_multirun_and_torchrun(line)
    name = TRAIN if line.config_name == "drill" else line.config_name
    composed = compose_config(name, overrides, line.config_dir, TRAIN)
    values = composed.values
    if values["dry_run"]:
        raise ConfigError(
            "dry_run=true: a drill always trains. Leave dry_run out, or use gpt2ckpt.train"
        )
    if values["resume"] is not None or values["fork"]:
        raise ConfigError("a drill trains a new run: leave resume and fork out")
    validated = validate_run(Start(freeze(values), task_overrides(overrides)))
    if not validated.config.checkpoint.enabled:
        raise ConfigError(
            "checkpoint.enabled=false saves nothing, so there is nothing to drill: leave it out"
        )
    parent = Path(composed.hydra.run.dir).parent
    overrides = [override for override in overrides if not sets(override, "hydra.run.dir")]
    with _scratch(parent) as scratch:
        checked = _examine(scratch)
        if checked.problems:
            print(*lines(file_system(checked)), sep="\n")
            print(f"FAILED: repair the file system of {parent}, or train on a different one")
            return 1
        drill = DrillRun(
            overrides=[*line.flags, *overrides],
            values=values,
            settings=Settings(
                total_steps=validated.total_steps,
                steps_per_epoch=validated.blocks_per_epoch / validated.blocks_per_step,
                checkpoint=validated.config.checkpoint,
                ranks=config.ranks,
            ),
            scratch=scratch,
            steps=config.steps,
            tokens_per_step=validated.blocks_per_step * validated.config.model.block_size,
            report=_report,
        )
        result = drill.run(checked)
        print(*verdict(result), sep="\n")
        if not result.passed:
            raise _DrillFailed(scratch)
    return 0


class _DrillFailed(UserError):
    """Raised when the drill failed; its folder is kept for inspection."""

    def __init__(self, scratch: Path) -> None:
        runs = [shlex.quote(str(scratch / name)) for name in ("killed", "reference")]
        super().__init__(
            f"the drill failed; both runs are kept in {scratch}: compare them with "
            f"`{command('checkpoints', 'diff', *runs, '--tensors')}`, then delete them"
        )


def split_overrides(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of the drill's own keys, even if misspelt, and those of the run."""
    own_keys = [field.name for field in fields(DrillConfig)]
    training_keys = all_keys(TRAIN)
    own = []
    for override, parsed in zip(overrides, parse_overrides(overrides), strict=True):
        key = parsed.key_or_group
        is_misspelt = key not in training_keys and nearest(key, own_keys, cutoff=0.75)
        if key in own_keys or (is_misspelt and not key_for(key, TRAIN)):
            own.append(override)
    return own, [override for override in overrides if override not in own]


def _refuse_multirun_and_torchrun(line: CommandLine) -> None:
    if line.multirun:
        raise ConfigError("drill has no multirun: leave -m out and test the settings of one job")
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("the drill starts torchrun itself: use python -m gpt2ckpt.drill ranks=N")


def _examine(scratch: Path) -> FileSystem:
    folder = scratch / "probe"
    try:
        folder.mkdir()
        checked = examine(folder)
        folder.rmdir()
    except OSError as error:
        raise _unwritable(folder, error) from error
    _report("checked the file system")
    return checked


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """Create a folder in `parent`; delete it at the end of the context unless the drill failed."""
    is_new = not parent.exists()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".drill_", dir=parent))
    except OSError as error:
        raise _unwritable(parent, error) from error
    is_kept = False
    try:
        yield scratch
    except _DrillFailed:
        is_kept = True
        raise
    except InputError as error:
        is_kept = True
        raise InputError(f"{error}; the folder {scratch} is kept: inspect and delete it") from error
    finally:
        if not is_kept:
            shutil.rmtree(scratch, ignore_errors=True)
            with contextlib.suppress(OSError):
                if is_new:
                    parent.rmdir()


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"{folder} cannot be written ({error.strerror}): check its permissions and free space"
    )


def _report(text: str) -> None:
    print(f"drill: {text}", flush=True)


if __name__ == "__main__":
    main()
