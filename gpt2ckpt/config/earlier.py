"""What frozen configs of earlier versions mean by the keys that they have, or lack.

A frozen config is replayed as it was, so a key that was added since gets the value of the time
before it, not today's default.
"""

from typing import Any

Values = dict[str, Any]

BLOCKS_PER_EVAL_STEP = 8  # what trainer.eval_steps counts in, whatever trainer.batch_size is
ADDED: dict[str, Values] = {  # to the data groups, by kind
    "tokens": {"dtype": "uint16"},
}
ADDED_KEYS = tuple(f"data.{key}" for keys in ADDED.values() for key in keys)


def completed(frozen: Values) -> Values:
    """Return the frozen config with the keys that were added since it was saved.

    An evaluation used to take `trainer.eval_steps` batches of `trainer.batch_size` blocks.
    """
    trainer, data = dict(frozen["trainer"]), dict(frozen["data"])
    if "eval_blocks" not in trainer:
        trainer["eval_blocks"] = trainer["eval_steps"] * trainer["batch_size"]
        trainer["eval_steps"] = None
    data = {**ADDED.get(data.get("kind", ""), {}), **data}
    return {**frozen, "trainer": trainer, "data": data}


def without_added(flat: Values) -> Values:
    """Return the flat config without those keys that say what an earlier version did anyway."""
    added = {
        f"data.{key}": value for key, value in ADDED.get(flat.get("data.kind", ""), {}).items()
    }
    return {key: value for key, value in flat.items() if key not in added or value != added[key]}


def in_blocks(values: Values) -> Values:
    """Return a composed config whose length of an evaluation is in `trainer.eval_blocks` alone."""
    trainer = values.get("trainer")
    if not isinstance(trainer, dict) or not trainer.get("eval_steps"):
        return values
    blocks = trainer["eval_steps"] * BLOCKS_PER_EVAL_STEP
    return {**values, "trainer": {**trainer, "eval_blocks": blocks, "eval_steps": None}}
