"""gpt2ckpt by its command; the losses are in metrics.jsonl instead of losses.txt."""

import json
import sys

from experiments.faults_of_peers import common


def main() -> None:
    """Train."""
    from gpt2ckpt import train

    given = common.settings()
    tokens = given.directory.parent / "tokens.bin"
    overrides = [
        *("data=tokens", f"data.train={tokens}", f"data.val={tokens}", "logger=none"),
        *("model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.dropout=0.1"),
        *(f"model.block_size={common.BLOCK}", f"model.vocab_size={common.VOCABULARY}"),
        *(f"trainer.batch_size={common.BATCH}", f"trainer.max_steps={common.STEPS}"),
        *("trainer.eval_every=0", "trainer.sample_every=0", "trainer.log_every=1"),
        *("trainer.device=cpu", "trainer.precision=float32", "trainer.threads=1"),
        *("schedule=constant", "schedule.warmup_steps=0", f"optimizer.lr={given.lr}"),
        *(f"checkpoint.save_every={common.SAVE_EVERY}", f"hydra.run.dir={given.directory}"),
    ]
    sys.argv = ["gpt2ckpt.train", *overrides, *(["+resume=latest"] if given.resume else [])]
    code = 0
    try:
        train.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    sys.exit(code)


def losses(directory: object) -> list[tuple[int, float]]:
    """Return the steps in metrics.jsonl."""
    from pathlib import Path

    path = Path(str(directory)) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines]
    return [(event["step"], event["train_loss"]) for event in events if "train_loss" in event]


if __name__ == "__main__":
    main()
