"""`python -m experiments.modern_gpt.study`: compares the modern recipe with GPT-2 and AdamW.

For each text, both recipes are tuned by a sweep of the same size. Then GPT-2 is trained with five
seeds, and the modern recipe with the same seeds in a fraction of the steps. The table states the
steps and the time in which the modern recipe reaches the validation loss of GPT-2.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from experiments.processes import machine
from experiments.report import grid
from gpt2ckpt.loggers.metrics_file import read
from gpt2ckpt.runs.layout import HISTORY
from gpt2ckpt.sweeps.journal import last_of_each
from gpt2ckpt.sweeps.journal import read as read_jobs

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ROOT = HERE.parent.parent
SEEDS = (1, 2, 3, 4, 5)
FRACTIONS = (0.4, 0.5, 0.6)  # of GPT-2's steps, for the modern recipe


@dataclass(frozen=True)
class Recipe:
    """A model with its optimizer and schedule.

    Attributes:
        name: Its name in the tables.
        overrides: What distinguishes it from the default config.
        swept: The overrides of its sweep, eight jobs.
    """

    name: str
    overrides: tuple[str, ...]
    swept: tuple[str, ...]


GPT2 = Recipe(
    name="GPT-2, AdamW",
    overrides=("optimizer=adamw", "schedule=cosine", "schedule.min_lr_ratio=0.0"),
    swept=("optimizer.lr=1e-3,2e-3,4e-3,8e-3", "optimizer.weight_decay=0.1,0.5"),
)
MODERN = Recipe(
    name="modern",
    overrides=(
        "plugins=[experiments.modern_gpt]",
        *("model=modern", "optimizer=modern_muon", "schedule=cooldown"),
    ),
    swept=("optimizer.lr=0.01,0.02,0.04,0.08", "optimizer.adamw_lr=3e-3,1e-2"),
)
TEXTS = ("embedded", "stdlib")


def main() -> None:
    """Run the stages that are asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", choices=TEXTS, action="append", help="default: both")
    parser.add_argument("--steps", type=int, default=400, help="of GPT-2")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "modern_gpt")
    args = parser.parse_args()
    facts = machine()
    for text in args.text or TEXTS:
        study = Study(text, args.steps, args.runs.absolute() / text)
        study.run()
        command = f"`python -m experiments.modern_gpt.study --text {text} --steps {args.steps}`"
        head = f"{command}, {date.today()}\n\n{facts['cpu']}, {facts['cores']} cores"
        (RESULTS / f"{text}.md").write_text(f"{head}, {facts['torch']}\n\n{study.table()}\n")
        print((RESULTS / f"{text}.md").read_text())


@dataclass(frozen=True)
class Study:
    """The study on one text. What exists in `folder` is not trained again.

    Attributes:
        text: "embedded", or "stdlib" for the sources of Python's standard library.
        steps: The steps of GPT-2.
        folder: Where the runs are written.
    """

    text: str
    steps: int
    folder: Path

    def run(self) -> None:
        """Tune both recipes, then train both with each seed, in turn."""
        chosen = {recipe.name: self.tune(recipe) for recipe in (GPT2, MODERN)}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.text}.json").write_text(json.dumps(chosen, indent=1))
        for seed in SEEDS:
            self._train(GPT2, chosen[GPT2.name], seed, self.steps)
            for fraction in FRACTIONS:
                self._train(MODERN, chosen[MODERN.name], seed, round(fraction * self.steps))

    def tune(self, recipe: Recipe) -> dict[str, Any]:
        """Sweep the learning rates of a recipe; return its jobs and the best overrides.

        The modern recipe is tuned at the middle of its lengths.
        """
        steps = self.steps if recipe is GPT2 else round(FRACTIONS[1] * self.steps)
        folder = self.folder / f"tune_{recipe.name.split(',')[0].lower()}"
        self._command("-m", *recipe.overrides, *recipe.swept, steps=steps, folder=folder)
        jobs = [
            {"overrides": entry.label.split(), "best_val_loss": entry.best_val_loss}
            for entry in last_of_each(read_jobs(folder)).values()
        ]
        best = min(jobs, key=lambda job: job["best_val_loss"])
        return {"steps": steps, "best": best, "jobs": jobs}

    def table(self) -> str:
        """Return the final validation losses and speeds of all seeds as a table."""
        gpt2 = self._ended(GPT2, self.steps)
        rows = [self._row(GPT2.name, self.steps, gpt2, gpt2)]
        for fraction in FRACTIONS:
            steps = round(fraction * self.steps)
            rows.append(self._row(MODERN.name, steps, self._ended(MODERN, steps), gpt2))
        head = ["recipe", "steps", "validation loss, mean ± deviation of five seeds"]
        return grid([*head, "steps, ratio", "time, ratio (median)"], rows)

    def _row(
        self, name: str, steps: int, ended: "list[Ended]", reference: "list[Ended]"
    ) -> list[str]:
        losses = [each.val_loss for each in ended]
        ratios = [one.seconds / other.seconds for one, other in zip(ended, reference, strict=True)]
        return [
            *(name, f"{steps}", f"{mean(losses):.4f} ± {stdev(losses):.4f}"),
            *(f"{steps / self.steps:.2f}", f"{median(ratios):.2f}"),
        ]

    def _ended(self, recipe: Recipe, steps: int) -> "list[Ended]":
        return [Ended.of(self._folder(recipe, seed, steps)) for seed in SEEDS]

    def _folder(self, recipe: Recipe, seed: int, steps: int) -> Path:
        return self.folder / f"{recipe.name.split(',')[0].lower()}_{steps}_seed_{seed}"

    def _train(self, recipe: Recipe, tuned: dict[str, Any], seed: int, steps: int) -> None:
        folder = self._folder(recipe, seed, steps)
        if folder.exists() and Ended.of(folder).step == steps:
            return
        chosen = tuned["best"]["overrides"]
        kept = [each for each in chosen if each.split("=")[0].startswith("optimizer.")]
        self._command(*recipe.overrides, *kept, f"seed={seed}", steps=steps, folder=folder)

    def _command(self, *overrides: str, steps: int, folder: Path) -> None:
        where = "hydra.sweep.dir" if "-m" in overrides else "hydra.run.dir"
        common = [
            *(f"trainer.max_steps={steps}", f"trainer.eval_every={steps}"),
            *("trainer.sample_every=0", "trainer.log_every=1", "checkpoint=off", "logger=none"),
            f"{where}={folder}",
        ]
        command = [sys.executable, "-m", "gpt2ckpt.train", *overrides, *self._data(), *common]
        subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "PYTHONHASHSEED": "0"})

    def _data(self) -> Iterable[str]:
        if self.text == "embedded":
            return ["data=embedded", "trainer.eval_blocks=80"]
        library = sysconfig.get_paths()["stdlib"]
        names = [f"{library}/*.py", *(f"{library}/{part}/*.py" for part in PACKAGES)]
        return ["data=text", f"data.train='{','.join(names)}'", "data.val_fraction=0.05"]


PACKAGES = ("asyncio", "email", "http", "importlib", "json", "logging", "multiprocessing", "xml/*")


@dataclass(frozen=True)
class Ended:
    """The end of a run: its last step and validation loss, and the seconds of all its steps."""

    step: int
    val_loss: float
    seconds: float

    @classmethod
    def of(cls, folder: Path) -> "Ended":
        """Read metrics.jsonl; evaluations do not count as time of the steps."""
        events = list(read(folder / HISTORY))
        steps = [event for event in events if "tokens_per_s" in event]
        tokens = steps[0]["tokens_seen"]
        val_loss = [event["val_loss"] for event in events if "val_loss" in event][-1]
        seconds = sum(tokens / event["tokens_per_s"] for event in steps)
        return cls(int(events[-1]["step"]), float(val_loss), seconds)


if __name__ == "__main__":
    main()
