"""Weights & Biases. All processes of a run use the same W&B run id."""

import contextlib
import html
import logging
import netrc
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import psutil

from gpt2ckpt.files.links import refuse_link
from gpt2ckpt.loggers.base import MetricRecord, scalars
from gpt2ckpt.loggers.wandb_offline import recorded_steps

_log = logging.getLogger(__name__)

TOKENS = "tokens_seen"  # the key in events and in W&B, and the x-axis of the charts
_KEY_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


class WandbLogger:
    """Sends events to W&B, or writes offline files if there is no account.

    No step is sent twice, because W&B would drop the second event with a warning, or show both. A
    killed process may have lost its last events, so events of `history` that W&B lacks are sent
    first.

    Args:
        run_dir: the run directory; W&B writes to its subdirectory `wandb`.
        project: the W&B project.
        entity: the W&B user or team; None for the default of the account.
        tags: W&B tags of the run.
        run_id: the W&B run id, equal for all processes of a run.
        name: the name of the run in W&B.
        config: the resolved config. It does not hold the API key, which W&B reads itself.
        resume: whether earlier processes of this run may have sent events.
        history: the events logged up to the step from which the run resumes.
        origin: the W&B run that this run was forked from, and the last step that both share.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        project: str,
        entity: str | None,
        tags: Iterable[str],
        run_id: str,
        name: str,
        config: Mapping[str, Any],
        resume: bool,
        history: Iterable[MetricRecord] = (),
        origin: tuple[str, int] | None = None,
    ) -> None:
        refuse_link(run_dir / "wandb")
        # Imported here because it takes most of a second.
        import wandb

        self._html = wandb.Html
        self._sent = recorded_steps(run_dir / "wandb", run_id) if resume else set()
        self._run = wandb.init(
            dir=str(run_dir),
            project=project,
            entity=entity,
            tags=list(tags),
            id=run_id,
            name=name,
            config={**config, **_link(origin)},
            notes=_notes(origin),
            resume="allow" if resume else None,
            mode=_mode(wandb.setup().settings, os.environ),
            # train.log has the console output already, and the run prints its own summary.
            settings=wandb.Settings(console="off", quiet=True),
        )
        # Online, W&B returns the next step of a resumed run; offline, always 0.
        self._first = self._run.step if resume else 0
        # Tokens make runs with different batch sizes comparable.
        self._run.define_metric(TOKENS)
        for metrics in ("train/*", "val/*"):
            self._run.define_metric(metrics, step_metric=TOKENS)
        for event in history:
            self.log(event)

    def log(self, event: MetricRecord) -> None:
        """Send an event without waiting, unless W&B has its step from an earlier process."""
        axis = {TOKENS: event[TOKENS]} if TOKENS in event else {}
        self._send(int(event["step"]), {**scalars(event), **axis})

    def text(self, step: int, text: str) -> None:
        """Send a text sample as preformatted text."""
        self._send(step, {"sample": self._html(f"<pre>{html.escape(text)}</pre>")})

    def flush(self) -> None:
        """Do nothing: W&B's own process receives each event immediately."""

    def close(self) -> None:
        """Finish the W&B run; online, wait until everything is sent."""
        self._run.finish()

    def _send(self, step: int, values: dict[str, Any]) -> None:
        if step >= self._first and step not in self._sent:
            self._run.log(values, step=step)


def service_progress() -> float:
    """Return the CPU seconds used by W&B's processes, which increase while they work."""
    seconds = 0.0
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "wandb" in process.name():
                    times = process.cpu_times()
                    seconds += times.user + times.system
    return seconds


def _link(origin: tuple[str, int] | None) -> dict[str, Any]:
    return {"continues": {"wandb_id": origin[0], "step": origin[1]}} if origin else {}


def _notes(origin: tuple[str, int] | None) -> str | None:
    return (
        f"Continues run {origin[0]} from step {origin[1]} with different settings."
        if origin
        else None
    )


def _mode(settings: Any, environ: Mapping[str, str]) -> Literal["offline"] | None:
    """Return "offline" if W&B would ask for an account; None to let W&B choose.

    Args:
        settings: the settings of W&B, from its files and the environment.
        environ: the environment variables.
    """
    chosen = "WANDB_MODE" in environ or settings.mode != "online"
    if chosen or settings.api_key or any(environ.get(name) for name in _KEY_VARIABLES):
        return None
    if _in_netrc(urlsplit(settings.base_url).netloc, environ):
        return None
    _log.warning(
        "no W&B account found: writing offline files. Run `wandb login` before the next run to "
        "send its events, and `wandb sync` to upload this one"
    )
    return "offline"


def _in_netrc(host: str, environ: Mapping[str, str]) -> bool:
    """Return whether netrc, where `wandb login` stores its key, has an entry for the host."""
    path = Path(environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
