"""The cases: ways to train, moments to stop at, kinds of checkpoint to resume from."""

import re
from dataclasses import dataclass
from pathlib import Path

from gpt2ckpt.checkpoint.names import Role, role_of

STEPS = 30
BLOCKS_PER_STEP = 2
BLOCKS_PER_EPOCH = 24  # so an epoch is 12 steps
EVAL_EVERY = 8
BLOCK, VOCABULARY = 16, 64

MOMENTS = {  # the last step before the stop
    "mid-epoch": 19,
    "epoch end": 12,
    "after an evaluation": 16,
}
BACKUPS = {  # all three independent or older copies get their turn
    "mid-epoch": Role.ROLLING_BACKUP,
    "epoch end": Role.LATEST_BACKUP,
    "after an evaluation": Role.BEST_BACKUP,
}
KINDS = {
    "rolling": Role.ROLLING,
    "best": Role.BEST,
    "emergency": Role.EMERGENCY,
    "epoch": Role.EPOCH,
    "backup": None,
}

BASE = [
    *("data=tokens", "data.train=train.bin", "data.val=val.bin"),
    *("model.n_layer=2", "model.n_embd=32", "model.n_head=2"),
    *(f"model.block_size={BLOCK}", f"model.vocab_size={VOCABULARY}"),
    *("trainer.batch_size=2", "trainer.sample_every=0", "trainer.log_every=1"),
    *("trainer.eval_steps=2", "trainer.device=cpu", "trainer.precision=float32"),
    *("trainer.threads=1", "schedule.warmup_steps=5", "optimizer.lr=3e-3", "logger=none"),
    f"trainer.max_steps={STEPS}",
]
ACCUMULATION = ["trainer.batch_size=1", "trainer.grad_accum=2"]
MUON = ["optimizer=muon"]
DROPOUT = ["model.dropout=0.1"]
MODERN = [
    *("plugins=[experiments.modern_gpt]", "model=modern", "model.value_residual=true"),
    *("optimizer=modern_muon", "schedule=cooldown"),
]


@dataclass(frozen=True)
class Variant:
    """A way to train: overrides of the base, and the number of ranks."""

    name: str
    more: list[str]
    ranks: int = 1

    @property
    def folder(self) -> str:
        """The name of the folder."""
        return re.sub(r"\W+", "_", self.name)

    @property
    def overrides(self) -> list[str]:
        groups = {word.partition("=")[0] for word in self.more}
        other = tuple(f"{group}." for group in ("optimizer", "schedule") if group in groups)
        return [*(word for word in BASE if not word.startswith(other)), *self.more]


VARIANTS = [
    Variant("AdamW, float32", []),
    Variant("bfloat16", ["trainer.precision=bfloat16"]),
    Variant("dropout", DROPOUT),
    Variant("accumulation", ACCUMULATION),
    Variant("Muon", MUON),
    Variant(
        "Muon, bfloat16, dropout, accumulation",
        [*MUON, *DROPOUT, *ACCUMULATION, "trainer.precision=bfloat16"],
    ),
    Variant("modern recipe", MODERN),
    Variant("2 ranks, dropout, accumulation", [*DROPOUT, *ACCUMULATION], ranks=2),
    Variant("compile, dropout", ["trainer.compile=true", *DROPOUT]),
]


@dataclass(frozen=True)
class Case:
    """A resume: the variant, when its run was stopped, and from which checkpoint it resumes."""

    variant: Variant
    moment: str
    kind: str

    @property
    def name(self) -> str:
        """The name of the folder."""
        return re.sub(r"\W+", "_", f"{self.variant.name} {self.moment} {self.kind}")

    def file_in(self, checkpoints: Path) -> Path:
        """Return the newest file of this kind."""
        role = KINDS[self.kind] or BACKUPS[self.moment]
        files = [path for path in checkpoints.iterdir() if role_of(path.name) is role]
        return max(files, key=lambda path: path.name)


def cases(variants: list[Variant]) -> list[Case]:
    return [Case(v, moment, kind) for v in variants for moment in MOMENTS for kind in KINDS]


def groups(variants: list[Variant]) -> list[list[Variant]]:
    """Return the cases that run together before their results are written."""
    keys = [(variant.ranks, "trainer.compile=true" in variant.more) for variant in variants]
    return [
        [v for v, key in zip(variants, keys, strict=True) if key == wanted]
        for wanted in dict.fromkeys(keys)
    ]
