"""The plan of the first rank, and how the other ranks follow it.

Only the first rank reads the command line, finds the state to resume and claims the directory. The
other ranks receive its plan, load the same checkpoint and the same data, and stop all ranks if they
see a different file.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2ckpt.config.checks import FSDP
from gpt2ckpt.config.replay import Change
from gpt2ckpt.config.schema import MuonConfig, TrainConfig
from gpt2ckpt.errors import ConfigError, InputError
from gpt2ckpt.parallel.process_group import DistributedGroup, ProcessGroup
from gpt2ckpt.parallel.shared_checkpoint import identify, load_identified
from gpt2ckpt.parallel.step_sharding import shard_step
from gpt2ckpt.runs.plugins import plugins_in_use
from gpt2ckpt.runs.start import Start
from gpt2ckpt.signals.early import exit_code
from gpt2ckpt.training.hardware import Hardware, hardware_of
from gpt2ckpt.training.validate_run import ValidatedRun, validate_run


def agree(start: Start, validated: ValidatedRun, hardware: Hardware, group: ProcessGroup) -> None:
    """On the first rank: publish the plan, and wait until all ranks follow it.

    Call this before anything is written.

    Raises:
        ConfigError: The batch cannot be distributed, or FSDP does not support the config.
        SystemExit: A rank cannot follow the plan; the exit code is that of the rank.
    """
    trainer = validated.config.trainer
    shard_step(group.rank, group.size, trainer.batch_size, trainer.grad_accum)
    if trainer.parallel == FSDP and isinstance(group, DistributedGroup):
        _check_sharded(validated.config, hardware)
    file, identity = identify(start.found) if start.found else (None, None)
    group.publish_plan(
        {
            "frozen": start.frozen,
            "overrides": start.overrides,
            "directory": str(start.directory) if start.directory else None,
            "given": start.given,
            "fork_requested": start.fork_requested,
            "changes": [dataclasses.asdict(change) for change in start.changes],
            "file": file,
            "identity": identity,
            "data": validated.corpus.digest,
            "plugins": _sources(start.frozen),
        }
    )


def follow(group: DistributedGroup, switch_on_plugins: Callable[[], None]) -> int:
    """On every other rank: follow the plan of the first rank, train, and return the exit code.

    Args:
        group: The ranks.
        switch_on_plugins: Imports the plugins that this rank's command line names. It is called
            after the first rank has imported the same, so that an error is reported once.

    Raises:
        InputError: This rank sees a different checkpoint or different data than the first rank.
        ConfigError: This rank does not have the device or the precision.
    """
    plan = group.receive_plan()
    switch_on_plugins()
    _check_plugins(plan)
    start = _start_of(plan)
    validated = validate_run(start, is_first=False)
    if validated.corpus.digest != plan["data"]:
        raise InputError(
            "this rank reads different data than the first rank "
            f"({validated.corpus.description}): all ranks need the same files"
        )
    hardware = hardware_of(start, validated, group)
    group.confirm_plan()
    directory = Path(group.receive_directory())
    from gpt2ckpt.training.session import Session

    outcome = Session(directory, start, validated, hardware, group).run()
    return group.wait_for_first_rank(exit_code(outcome.stopped) if outcome.stopped else 0)


def _check_plugins(plan: dict[str, Any]) -> None:
    """Raise InputError if a plugin of this rank is not the first rank's."""
    own = _sources(plan["frozen"])
    for module, source in plan["plugins"].items():
        if own.get(module) != source:
            raise InputError(
                f"this rank has a different plugin {module} than the first rank: start all ranks "
                "with the same command and the same files"
            )


def _sources(frozen: dict[str, Any]) -> dict[str, str | None]:
    """Return the digest of each plugin that a config uses."""
    return {plugin.module: plugin.source for plugin in plugins_in_use(frozen) or []}


def _check_sharded(config: TrainConfig, hardware: Hardware) -> None:
    """Raise ConfigError for a config that FSDP does not support."""
    reason = ""
    if isinstance(config.optimizer, MuonConfig):
        reason = "optimizer=muon, which needs complete matrices"
    elif hardware.precision == "float16":
        reason = "trainer.precision=float16, as each rank would scale by its own shard"
    elif config.trainer.compile:
        reason = "trainer.compile=true"
    if reason:
        raise ConfigError(f"trainer.parallel=fsdp does not support {reason}: remove one of the two")


def _start_of(plan: dict[str, Any]) -> Start:
    file = plan["file"]
    return Start(
        plan["frozen"],
        plan["overrides"],
        Path(plan["directory"]) if plan["directory"] else None,
        load_identified(Path(file), plan["identity"]) if file else None,
        [Change(**change) for change in plan["changes"]],
        given=plan["given"],
        fork_requested=plan["fork_requested"],
    )
