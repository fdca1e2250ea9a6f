"""The schema of every config group: names, types and defaults.

Hydra checks a composed config against these classes, and `gpt2ckpt.config.registry` builds them
from a frozen config. A class that is an option of a group (`gpt2ckpt.builtin`) also has the key
`kind`, the option's name. The options in conf/ have the same defaults, which a test compares: a
config file of the user's may set a part of the keys. The comments in conf/ say what each key means.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

from omegaconf import MISSING

from gpt2ckpt.config import limits
from gpt2ckpt.config.options import setting

VOCAB_SIZE = 50257
END_OF_TEXT = 50256  # GPT-2's token <|endoftext|>


class ModelShape(Protocol):
    """What every model config has."""

    block_size: int
    vocab_size: int


@dataclass
class ModelConfig:
    """The shape of a GPT-2 (conf/model/). Weights in `init_from` set the shape themselves."""

    n_layer: int = setting(4, effect="shape")
    n_head: int = setting(4, effect="shape")
    n_embd: int = setting(128, effect="shape")
    block_size: int = setting(128, effect="shape")
    vocab_size: int = setting(VOCAB_SIZE, effect="shape")
    dropout: float = 0.0
    bias: bool = setting(True, effect="shape")
    gelu: str = setting("tanh", effect="shape")
    init_from: str | None = None


@dataclass
class EmbeddedDataConfig:
    """The Python language reference, English prose that is part of every Python installation."""

    val_fraction: float = 0.1
    split: str = "sections"


@dataclass
class TextDataConfig:
    """UTF-8 text files. `train` may be null for an evaluation on `val`."""

    train: str | None = None
    val: str | None = None
    val_fraction: float = 0.1


@dataclass
class TokensDataConfig:
    """Token files: nanoGPT's, without a header, or llm.c's shards."""

    train: str | None = None
    val: str = MISSING
    dtype: str = "auto"


@dataclass
class AdamWConfig:
    """AdamW for all parameters."""

    lr: float = 3e-3
    weight_decay: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Raise ConfigError for the first setting that is out of range."""
        limits.check_adamw(self.lr, self.weight_decay, self.betas, self.eps)


@dataclass
class MuonConfig:
    """Muon for the matrices of the blocks; AdamW for embeddings, norms and biases."""

    lr: float = 0.02
    weight_decay: float = 0.1
    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    adamw_lr: float = 3e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Raise ConfigError for the first setting that is out of range."""
        limits.check_adamw(self.lr, self.weight_decay, self.betas, self.eps)
        limits.check_muon(self.adamw_lr, self.momentum, self.ns_steps)


@dataclass
class CosineConfig:
    """Linear warm-up, then half a cosine down to `min_lr_ratio`."""

    warmup_steps: int = 40
    steps: int | None = None
    min_lr_ratio: float = 0.1


@dataclass
class WsdConfig:
    """Linear warm-up, a plateau, then a linear decay over the last `decay_steps`."""

    warmup_steps: int = 40
    decay_steps: int = 100
    steps: int | None = None
    min_lr_ratio: float = 0.0


@dataclass
class ConstantConfig:
    """Linear warm-up, then a constant learning rate."""

    warmup_steps: int = 40


@dataclass
class TrainerConfig:
    """The training loop. A step trains `batch_size * grad_accum` blocks."""

    max_steps: int | None = None
    max_epochs: int | None = None
    batch_size: int = 8
    grad_accum: int = 1
    grad_clip: float = 1.0
    eval_every: int = 80
    eval_blocks: int = 160
    eval_steps: int | None = None
    log_every: int = 10
    sample_every: int = 130
    sample_tokens: int = 48
    sample_prompt: str = "The"
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    deterministic: bool = True
    threads: int | None = None
    parallel: str = "ddp"
    overfit: bool = False
    on_bad_loss: str = "stop"
    max_rollbacks: int = 10
    spike_zscore: float | None = None
    spike_window: int = 100


@dataclass
class CheckpointConfig:
    """The checkpoint policy: when to save, and how many files to keep."""

    enabled: bool = True
    save_every: int = 250
    keep_rolling: int = 10
    keep_emergency: int = 10
    keep_epochs: int | None = 10
    save_epochs: bool = True
    save_best: bool = True
    async_save: bool = True
    scrub_every: int = 10
    scrub_mb_per_s: float = 50.0
    hang_seconds: float = 300.0
    grace_seconds: float | None = None


@dataclass
class LoggerConfig:
    """The loggers beside metrics.jsonl, which is always written."""

    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = "gpt2ckpt"
    wandb_entity: str | None = None
    wandb_tags: list[str] = field(default_factory=list)


@dataclass
class TrainConfig:
    """The config of `python -m gpt2ckpt.train`."""

    name: str = "gpt2"
    seed: int = 1337
    model: Any = None
    data: Any = None
    optimizer: Any = None
    schedule: Any = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: Any = None
    callback: dict[str, Any] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)
    resume: str | None = None
    fork: bool | None = None
    dry_run: bool | None = None


@dataclass
class SampleConfig:
    """The config of `python -m gpt2ckpt.sample`."""

    ckpt: str = MISSING
    prompt: str = ""
    max_tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = 50
    num_samples: int = 1
    seed: int = 1337
    device: str = "auto"
    precision: str = "auto"
    plugins: list[str] = field(default_factory=list)


@dataclass
class EvaluateConfig:
    """The config of `python -m gpt2ckpt.evaluate`. `data` null means the data of the training."""

    ckpt: str = MISSING
    data: Any = None
    batch_size: int = 8
    device: str = "auto"
    precision: str = "float32"
    plugins: list[str] = field(default_factory=list)


@dataclass
class PrepareConfig:
    """The config of `python -m gpt2ckpt.prepare`."""

    data: Any = None
    out: str = MISSING
    shard_tokens: int = 100_000_000
    plugins: list[str] = field(default_factory=list)


@dataclass
class DrillConfig:
    """The keys of `python -m gpt2ckpt.drill` beside those of a training."""

    steps: int = 8
    ranks: int = 1
