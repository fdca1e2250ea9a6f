"""What a run tells its user, as text: pure functions from facts to lines of at most 80 columns.

Lines of steps and evaluations have them for numbers of usual size. Paths and commands are never
broken, so that they can be copied; they alone may be longer.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from gpt2ckpt.checkpoint.best import Best
from gpt2ckpt.data.tokens import count_blocks
from gpt2ckpt.files.disk_usage import free_space_text
from gpt2ckpt.units import human_bytes, human_count, human_duration, perplexity, plural

WIDTH = 80
_LABEL = 13
_OFF_ON = ("off", "on")
_FILES_SHOWN = 3
_COPIED = frozenset({"run", "go on", "sample"})

_Row: TypeAlias = tuple[str, str]  # a label and what it labels


@dataclass(frozen=True)
class MachineFacts:
    """Where and how a run computes."""

    device: str
    device_reason: str
    precision: str
    precision_reason: str
    attention: str
    compiled: bool
    deterministic: bool
    threads: int
    ranks: int = 1


@dataclass(frozen=True)
class ModelFacts:
    """The shape of the model, its parameters by part (a tied one in one part only), and the
    floating-point operations per token, forward and backward."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    parameters_by_part: Mapping[str, int]
    flops_per_token: float


@dataclass(frozen=True)
class DataFile:
    """A source of tokens: how many of those that it holds are used."""

    name: str
    tokens: int
    held: int


@dataclass(frozen=True)
class PlanFacts:
    """What is trained on what.

    Steps are optimizer steps of the whole run, `done_steps` of them done before; `total_tokens` and
    `epochs`, passes over the training data, are of the whole run too. `max_epochs` is given where
    it ends the run; `tokens_per_s` was logged by an earlier process on the same hardware.
    """

    total_steps: int
    done_steps: int
    batch_size: int
    grad_accum: int
    block_size: int
    total_tokens: int
    epochs: float
    train: tuple[DataFile, ...]
    val: tuple[DataFile, ...]
    max_epochs: int | None = None
    tokens_per_s: float | None = None

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.grad_accum * self.block_size

    @property
    def seconds_left(self) -> float | None:
        """Without evaluations and saves; None if no speed has been measured."""
        left = (self.total_steps - self.done_steps) * self.tokens_per_step
        return left / self.tokens_per_s if self.tokens_per_s else None


@dataclass(frozen=True)
class MemoryFacts:
    """Bytes that a rank needs at least, whatever the batch, of those that its device has."""

    needed: int
    total: int


@dataclass(frozen=True)
class SavingFacts:
    """Where the state goes. Sizes in bytes; `max_kept` counts files that take space of their own
    at the same time, beside the space kept for an emergency save (`reserve_bytes`). Of epochs all
    ends are kept if `keep_epochs` is None. A `save_every` of 0 saves at the end only; not
    `enabled`: never. `run_dir` is None in a preview: the directory gets its name at the start."""

    enabled: bool
    run_dir: Path | None
    save_every: int
    keep_rolling: int
    keep_emergency: int
    keep_epochs: int | None
    checkpoint_bytes: int
    max_kept: int
    reserve_bytes: int
    free_bytes: int

    @property
    def most_bytes(self) -> int:
        """What all checkpoints take at most, with the space kept for an emergency save."""
        return self.checkpoint_bytes * self.max_kept + self.reserve_bytes


@dataclass(frozen=True)
class SavedFacts:
    """What a run has on disk at its end, and how many more saves fit (None: not known)."""

    checkpoints: int
    disk_bytes: int
    free_bytes: int
    saves_left: int | None


@dataclass(frozen=True)
class SummaryFacts:
    """What a process did until its end: `steps` by itself, of `all_steps` of the run, and the
    tokens of these. Losses are None where none was computed; `train_loss` is the mean over the last
    `mean_steps` steps; `tokens_per_s` is the median over the logged steps; `best_step` is the step
    of `best_val_loss`; `saved` is None where the file system did not answer."""

    steps: int
    all_steps: int
    tokens: int
    seconds: float
    tokens_per_s: float | None
    train_loss: float | None
    mean_steps: int
    val_loss: float | None
    best_val_loss: float | None
    best_step: int | None
    run_dir: Path
    saved: SavedFacts | None
    resume_command: str | None
    sample_command: str | None


def start_report(
    *,
    machine: MachineFacts,
    model: ModelFacts,
    plan: PlanFacts,
    memory: MemoryFacts,
    saving: SavingFacts,
    weights: Sequence[str] = (),
) -> list[str]:
    """Return what a run is about to do, one subject per line.

    `weights` are lines on those that the model starts with; none for random ones.
    """
    parameters = sum(model.parameters_by_part.values())
    return _layout(
        [
            *_machine_rows(machine),
            *_model_rows(model, parameters),
            *_rows("weights", weights),
            *_plan_rows(plan, parameters),
            *_data_rows("train data", plan.train, plan.block_size),
            *_data_rows("val data", plan.val, plan.block_size),
            ("memory", _memory(memory)),
            *_saving_rows(saving),
        ]
    )


def warning_lines(warnings: Iterable[str]) -> list[str]:
    """Return warnings laid out as the rows of the report above them."""
    return _layout([("warning", warning) for warning in warnings])


def step_line(
    *,
    step: int,
    total_steps: int,
    loss: float,
    lr: float,
    grad_norm: float,
    tokens_per_s: float,
    seconds_left: float,
) -> str:
    """Return the line of one logged step, in columns that stay where they are.

    At most 80 columns for up to six digits of steps. The loss is the mean over the steps since the
    last logged one, in nats per token.
    """
    cells = (
        f"loss {_loss(loss)}",
        f"lr {_learning_rate(lr)}",
        f"grad {_grad_norm(grad_norm)}",
        f"{_rate(tokens_per_s)} tok/s",
        f"ETA {human_duration(seconds_left)}",
    )
    return f"{_progress(step, total_steps)} | {'  '.join(cells)}"


def eval_line(
    *, step: int, total_steps: int, val_loss: float, previous_best: Best | None, seconds: float
) -> str:
    """Return the line of one evaluation, with at most as many columns as `step_line`.

    Args:
        step: Optimizer steps done.
        total_steps: Optimizer steps of the run.
        val_loss: Loss in nats per token.
        previous_best: The best evaluation before; None if there was none.
        seconds: Duration of the evaluation.
    """
    best = previous_best
    is_best = best is None or val_loss < best.loss
    cells = (
        f"val  {_loss(val_loss)}",
        f"perplexity {_perplexity(val_loss)}",
        "best so far" if is_best or best is None else f"best {_loss(best.loss)} at {best.step}",
        human_duration(seconds),
    )
    return f"{_progress(step, total_steps)} | {'  '.join(cells)}"


def summary(facts: SummaryFacts) -> list[str]:
    """What was done, what is on disk, and how to go on."""
    in_all = f" ({facts.all_steps:,} in all)" if facts.all_steps > facts.steps else ""
    if facts.all_steps < facts.steps:  # it went back to an older step
        in_all = f" ({facts.all_steps:,} of them count)"
    median = "" if facts.tokens_per_s is None else f", median {facts.tokens_per_s:,.0f} tok/s"
    done = (
        f"{plural(facts.steps, 'step')}{in_all}, {facts.tokens:,} tokens in "
        f"{human_duration(facts.seconds)}{median}"
    )
    rows = [("trained", done), *_loss_rows(facts), ("run", str(facts.run_dir))]
    commands = [("go on", facts.resume_command), ("sample", facts.sample_command)]
    rows += [("saved", _saved(facts.saved))]
    rows += [(label, command) for label, command in commands if command]
    return _layout(rows)


def _saved(saved: SavedFacts | None) -> str:
    if saved is None:
        return "not known: the file system of the run does not answer"
    left = "" if saved.saves_left is None else f": {saved.saves_left:,} more saves fit"
    return (
        f"{plural(saved.checkpoints, 'file')}, {human_bytes(saved.disk_bytes)} on disk, "
        f"{free_space_text(saved.free_bytes)}{left}"
    )


def _machine_rows(machine: MachineFacts) -> list[_Row]:
    ranks = f", {machine.ranks} ranks" if machine.ranks > 1 else ""
    how = (
        f"attention {machine.attention}, compile {_OFF_ON[machine.compiled]}, "
        f"deterministic {_OFF_ON[machine.deterministic]}, "
        f"{plural(machine.threads, 'thread')}{ranks}"
    )
    return [
        ("device", f"{machine.device} ({machine.device_reason})"),
        ("precision", f"{machine.precision} ({machine.precision_reason})"),
        ("compute", how),
    ]


def _model_rows(model: ModelFacts, parameters: int) -> list[_Row]:
    shape = (
        f"GPT-2, {plural(model.n_layer, 'layer')} x {model.n_embd}, "
        f"{plural(model.n_head, 'head')}, context {model.block_size:,}, "
        f"vocabulary {model.vocab_size:,}"
    )
    parts = ", ".join(f"{part} {count:,}" for part, count in model.parameters_by_part.items())
    work = f"{human_count(model.flops_per_token)}FLOP per token, forward and backward"
    return [("model", shape), ("parameters", f"{parameters:,}: {parts}"), ("work", work)]


def _plan_rows(plan: PlanFacts, parameters: int) -> list[_Row]:
    step = (
        f"{plural(plan.batch_size * plan.grad_accum, 'block')} of {plan.block_size:,} = "
        f"{plan.tokens_per_step:,} tokens "
        f"(micro-batch {plan.batch_size:,}, accumulation {plan.grad_accum:,})"
    )
    done = f" ({plan.done_steps:,} done)" if plan.done_steps else ""
    epochs = plural(plan.max_epochs, "epoch") if plan.max_epochs else f"{plan.epochs:,.2f} epochs"
    whole = (
        f"{plural(plan.total_steps, 'step')}{done}, {plan.total_tokens:,} tokens, {epochs}, "
        f"{plan.total_tokens / parameters:,.2f} tokens per parameter"
    )
    return [("step", step), ("training", whole), ("time", _time(plan))]


def _time(plan: PlanFacts) -> str:
    if plan.seconds_left is None:
        return "not known before the first steps"
    return (
        f"about {human_duration(plan.seconds_left)} for "
        f"{plural(plan.total_steps - plan.done_steps, 'step')} at "
        f"{plan.tokens_per_s:,.0f} tok/s, as logged last, plus evaluations and saves"
    )


def _memory(memory: MemoryFacts) -> str:
    return (
        f"at least {human_bytes(memory.needed)} of {human_bytes(memory.total)}: weights, "
        "gradients, optimizer state; activations come on top"
    )


def _data_rows(label: str, files: tuple[DataFile, ...], block_size: int) -> list[_Row]:
    """All files together if they are several, then the first of them by name."""
    used, held = sum(file.tokens for file in files), sum(file.held for file in files)
    every = DataFile(f"{len(files):,} files", used, held)
    shown = [*([every] if len(files) > 1 else []), *files[:_FILES_SHOWN]]
    entries = [f"{file.name}: {_used(file)}" for file in shown]
    entries[0] += f", {plural(count_blocks(used, block_size), 'block')}"
    if len(files) > _FILES_SHOWN:
        entries.append(f"and {len(files) - _FILES_SHOWN:,} more")
    return _rows(label, entries)


def _used(file: DataFile) -> str:
    of = f" of {file.held:,}" if file.held != file.tokens else ""
    return f"{file.tokens:,}{of} tokens"


def _saving_rows(saving: SavingFacts) -> list[_Row]:
    run = [("run", str(saving.run_dir))] if saving.run_dir else []
    if not saving.enabled:
        return [*run, ("checkpoints", "none, so a crash loses this run (checkpoint.enabled=false)")]
    every = f"every {plural(saving.save_every, 'step')} and " if saving.save_every else ""
    epochs = "all" if saving.keep_epochs is None else f"{saving.keep_epochs:,}"
    kept = (
        f"keeps {saving.keep_rolling:,} rolling, {saving.keep_emergency:,} emergency, "
        f"{epochs} epoch"
    )
    space = (
        f"{human_bytes(saving.checkpoint_bytes)} a checkpoint, at most "
        f"{human_bytes(saving.most_bytes)} for {saving.max_kept:,}, "
        f"{free_space_text(saving.free_bytes)}"
    )
    return [*run, ("checkpoints", f"{every}at the end; {kept} files"), ("disk", space)]


def _loss_rows(facts: SummaryFacts) -> list[_Row]:
    train, val = [], []
    if facts.train_loss is not None:
        over = f"mean of {facts.mean_steps:,} steps" if facts.mean_steps > 1 else "of one step"
        train.append(f"train {facts.train_loss:.4f} ({over})")
    if facts.val_loss is not None:
        val.append(f"val {facts.val_loss:.4f} (perplexity {_perplexity(facts.val_loss)})")
    if facts.best_val_loss is not None and facts.best_step is not None:
        val.append(f"best val {facts.best_val_loss:.4f} at step {facts.best_step:,}")
    return _rows("loss", [*train, *([", ".join(val)] if val else [])] or ["none"])


def _rows(label: str, lines: Sequence[str]) -> list[_Row]:
    """The lines under one label."""
    return [(label if at == 0 else "", line) for at, line in enumerate(lines)]


def _layout(rows: Iterable[_Row]) -> list[str]:
    """Labelled lines; long ones go on under their own beginning."""
    lines: list[str] = []
    wrapper = textwrap.TextWrapper(
        WIDTH, subsequent_indent=" " * _LABEL, break_long_words=False, break_on_hyphens=False
    )
    for label, text in rows:
        line = label.ljust(_LABEL) + text
        lines += [line] if label in _COPIED else wrapper.wrap(line)
    return lines


def _progress(step: int, total_steps: int) -> str:
    return f"step {step:>{len(str(total_steps))}}/{total_steps}"


def _loss(loss: float) -> str:
    """Six characters for any usual loss."""
    return f"{loss:6.4f}" if abs(loss) < 10 else f"{loss:6.3f}"


def _grad_norm(norm: float) -> str:
    """Four characters for any norm below 10,000."""
    return f"{norm:4.2f}" if norm < 10 else f"{norm:4.1f}" if norm < 100 else f"{norm:4.0f}"


def _learning_rate(lr: float) -> str:
    """Six characters for any usual rate: 2.9e-3."""
    digits, _, exponent = f"{lr:.1e}".partition("e")
    return f"{digits}e{int(exponent)}"


def _rate(per_second: float) -> str:
    """Five characters for any rate below a billion: 3,840, 384k, 1.23M."""
    if per_second < 9999.5:
        return f"{per_second:5,.0f}"
    if per_second < 999_500:
        return f"{per_second / 1e3:4.0f}k"
    return f"{per_second / 1e6:4.3g}M"


def _perplexity(loss: float) -> str:
    value = perplexity(loss)
    return f"{value:,.1f}" if value < 1e3 else f"{value:,.0f}" if value < 1e9 else f"{value:.1e}"
