"""Completes frozen configs of earlier versions, which lack keys that were added later.

Without such a key, an earlier version behaved as if the key had a certain value. If this value is
not today's default, EARLIER_VALUES has it, so that a resumed run keeps its behaviour.
"""

from typing import Any

BLOCKS_PER_EVAL_STEP = 8  # trainer.eval_steps=1 means 8 blocks
EARLIER_VALUES: dict[str, dict[str, Any]] = {  # by group, or by group and kind
    "checkpoint": {"keep_epochs": None},
    "data.embedded": {"split": "tail"},
    "data.tokens": {"dtype": "uint16"},
}


def with_earlier_values(group: str, frozen: dict[str, Any]) -> dict[str, Any]:
    """Return a group of a frozen config with the keys of EARLIER_VALUES that it lacks."""
    name = f"{group}.{frozen['kind']}" if "kind" in frozen else group
    return EARLIER_VALUES.get(name, {}) | frozen


def completed(frozen: dict[str, Any]) -> dict[str, Any]:
    """Return a frozen config that has the length of an evaluation in `trainer.eval_blocks`.

    Earlier versions evaluated `trainer.eval_steps` batches of `trainer.batch_size` blocks.
    """
    trainer = dict(frozen["trainer"])
    if "eval_blocks" in trainer:
        return frozen
    trainer["eval_blocks"] = trainer["eval_steps"] * trainer["batch_size"]
    trainer["eval_steps"] = None
    return {**frozen, "trainer": trainer}


def in_blocks(values: dict[str, Any]) -> dict[str, Any]:
    """Return a composed config that has the length of an evaluation in `trainer.eval_blocks`."""
    trainer = values.get("trainer")
    if not isinstance(trainer, dict) or not trainer.get("eval_steps"):
        return values
    blocks = trainer["eval_steps"] * BLOCKS_PER_EVAL_STEP
    return {**values, "trainer": {**trainer, "eval_blocks": blocks, "eval_steps": None}}
