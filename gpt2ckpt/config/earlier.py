"""What frozen configs of earlier versions mean, where today's keys say it in another way.

A frozen config is replayed as it was. A key that was only added since needs nothing here: what it
is where a frozen config lacks it stands in the schema, and what it is in a new run in conf/.
"""

from typing import Any

Values = dict[str, Any]

BLOCKS_PER_EVAL_STEP = 8  # what trainer.eval_steps counts in, whatever trainer.batch_size is


def completed(frozen: Values) -> Values:
    """Return the frozen config with the length of an evaluation in `trainer.eval_blocks`.

    It used to be `trainer.eval_steps` batches of `trainer.batch_size` blocks.
    """
    trainer = dict(frozen["trainer"])
    if "eval_blocks" in trainer:
        return frozen
    trainer["eval_blocks"] = trainer["eval_steps"] * trainer["batch_size"]
    trainer["eval_steps"] = None
    return {**frozen, "trainer": trainer}


def in_blocks(values: Values) -> Values:
    """Return a composed config whose length of an evaluation is in `trainer.eval_blocks` alone."""
    trainer = values.get("trainer")
    if not isinstance(trainer, dict) or not trainer.get("eval_steps"):
        return values
    blocks = trainer["eval_steps"] * BLOCKS_PER_EVAL_STEP
    return {**values, "trainer": {**trainer, "eval_blocks": blocks, "eval_steps": None}}
