"""The loggers of a run: metrics.jsonl, and those that the config enables."""

import contextlib
from pathlib import Path
from typing import Any

from gpt2ckpt.config.registry import option_of
from gpt2ckpt.config.schema import LoggerConfig
from gpt2ckpt.loggers.fanout import Loggers
from gpt2ckpt.loggers.metrics_file import MetricsFile, read
from gpt2ckpt.loggers.plugin_logger import PluginLogger
from gpt2ckpt.loggers.tensorboard import TensorBoardLogger
from gpt2ckpt.loggers.wandb import WandbLogger, service_progress
from gpt2ckpt.runs.history import origin_in
from gpt2ckpt.runs.layout import HISTORY, REPLAY, TENSORBOARD, run_title
from gpt2ckpt.training.state import Provenance


class RunLoggers(Loggers):
    """The loggers of one process of a run, open from the start of the process to `close`.

    TensorBoard, W&B and the logger of a plugin receive the lines of metrics.jsonl up to the first
    step of this process, so that a resumed run appears as one run.

    Args:
        directory: The run directory.
        config: The logger group of the config.
        provenance: The run's identity and frozen config, which are shown with the run.
        step: The optimizer steps done before this process.
        is_resumed: Whether W&B may already have the run.
    """

    def __init__(
        self,
        directory: Path,
        config: Any,
        provenance: Provenance,
        *,
        step: int,
        is_resumed: bool,
    ) -> None:
        super().__init__(MetricsFile(directory / HISTORY))
        self._directory, self._config, self._provenance = directory, config, provenance
        self._add_others(step, is_resumed=is_resumed)

    def rewind(self, step: int, seconds: float) -> None:
        """Remove what was logged after `step`, to which a rollback returned; reopen the loggers."""
        super().rewind(step, seconds)
        with contextlib.suppress(OSError):  # left behind, it only costs a comparison
            (self._directory / REPLAY).unlink(missing_ok=True)
        self._add_others(step, is_resumed=True)

    def _add_others(self, step: int, *, is_resumed: bool) -> None:
        directory, config, provenance = self._directory, self._config, self._provenance
        history: list[dict[str, Any]] = []
        # Read before the loggers' threads start, since metrics.jsonl grows from then on.
        with contextlib.suppress(OSError):
            history = [event for event in read(directory / HISTORY) if event["step"] <= step]
        option = option_of("logger", config)
        if not option.is_built_in:
            self.add(str(option), lambda: PluginLogger(option.build(config, directory), history))
        if not isinstance(config, LoggerConfig):
            return
        if config.tensorboard:
            self.add(
                "TensorBoard",
                lambda: TensorBoardLogger(
                    directory / TENSORBOARD, step + 1, history, provenance.config
                ),
            )
        if config.wandb:
            self.add(
                "W&B",
                lambda: WandbLogger(
                    run_dir=directory,
                    project=config.wandb_project,
                    entity=config.wandb_entity,
                    tags=config.wandb_tags,
                    run_id=provenance.run.wandb_id or provenance.run.id,
                    name=run_title(directory),
                    config=provenance.config,
                    resume=is_resumed,
                    history=history,
                    origin=origin_in(directory),
                ),
                service_progress,
            )
