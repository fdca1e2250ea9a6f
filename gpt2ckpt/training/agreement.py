"""What the first rank of several decides, and how the others follow it.

The first rank alone reads the command line, finds what to resume and claims the directory. The
others get its plan, read the same checkpoint and the same data, and refuse to go on with others.
"""

import dataclasses
from pathlib import Path
from typing import Any

from gpt2ckpt.config.checks import FSDP
from gpt2ckpt.config.replay import Change
from gpt2ckpt.config.schema import MuonConfig, TrainConfig
from gpt2ckpt.errors import ConfigError, InputError
from gpt2ckpt.parallel.group import Group, Team
from gpt2ckpt.parallel.same_file import name_of, read_named
from gpt2ckpt.parallel.share import share_of
from gpt2ckpt.runs.start import Start
from gpt2ckpt.standby import exit_code
from gpt2ckpt.training.hardware import Hardware, hardware_of
from gpt2ckpt.training.preparation import Prepared, prepare


def agree(start: Start, prepared: Prepared, hardware: Hardware, team: Team) -> None:
    """First rank: have all the others follow `start`; nothing has been written yet.

    Raises ConfigError for a batch that the ranks cannot share, SystemExit if one cannot follow.
    """
    trainer = prepared.config.trainer
    share_of(team.rank, team.size, trainer.batch_size, trainer.grad_accum)
    if trainer.parallel == FSDP and isinstance(team, Group):
        _check_sharded(prepared.config, hardware)
    file, seal = name_of(start.found) if start.found else (None, None)
    team.propose(
        {
            "frozen": start.frozen,
            "overrides": start.overrides,
            "directory": str(start.directory) if start.directory else None,
            "given": start.given,
            "is_fork_asked_for": start.is_fork_asked_for,
            "changes": [dataclasses.asdict(change) for change in start.changes],
            "file": file,
            "seal": seal,
            "data": prepared.corpus.digest,
        }
    )


def follow(group: Group) -> int:
    """Any other rank: train along. Returns the exit code.

    Raises InputError if this rank sees another checkpoint or other data than the first, ConfigError
    if it cannot compute; nothing has been written then.
    """
    plan = group.hear_plan()
    start = _start_of(plan)
    prepared = prepare(start)
    if prepared.corpus.digest != plan["data"]:
        raise InputError(
            f"this rank reads other data than the first ({prepared.corpus.description}): all ranks "
            "need the same files"
        )
    hardware = hardware_of(start, prepared, group)
    group.accept()
    directory = Path(group.hear_directory())
    from gpt2ckpt.training.session import Session

    outcome = Session(directory, start, prepared, hardware, group).run()
    return group.wait_for_end(exit_code(outcome.stopped) if outcome.stopped else 0)


def _check_sharded(config: TrainConfig, hardware: Hardware) -> None:
    """Raise ConfigError for what cannot be trained with every tensor in parts."""
    reason = ""
    if isinstance(config.optimizer, MuonConfig):
        reason = "optimizer=muon, which works on whole matrices"
    elif hardware.precision == "float16":
        reason = "trainer.precision=float16, whose scale each rank would set by its own part"
    elif config.trainer.compile:
        reason = "trainer.compile=true"
    if reason:
        raise ConfigError(
            f"trainer.parallel=fsdp does not go with {reason}: leave one of the two out"
        )


def _start_of(plan: dict[str, Any]) -> Start:
    file = plan["file"]
    return Start(
        plan["frozen"],
        plan["overrides"],
        Path(plan["directory"]) if plan["directory"] else None,
        read_named(Path(file), plan["seal"]) if file else None,
        [Change(**change) for change in plan["changes"]],
        given=plan["given"],
        is_fork_asked_for=plan["is_fork_asked_for"],
    )
