"""Weights & Biases: one run with one id, whatever the number of processes that trained it."""

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

TOKENS = "tokens_seen"  # in events and in W&B: the horizontal axis of the curves
_KEY_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


class WandbLogger:
    """Sends events to W&B, or to its offline files where there is no account.

    No step is sent twice: W&B would drop it with a warning, or show two. What W&B lacks of
    `history` is sent first, since a killed process may not have got rid of its last events.

    Args:
        run_dir: W&B's files go to its folder `wandb`.
        project: W&B's project.
        entity: W&B's user or team; None is the account's own.
        tags: labels of the run.
        run_id: the same for every process of a run.
        name: what W&B shows as the run's name: its directory's.
        config: the resolved config. It holds no key: W&B takes that from the environment or netrc.
        resume: whether earlier processes of this run may have sent something.
        history: the events that the run has logged up to the step that it goes on from.
        origin: the W&B run that this one was split off from, and the last step that they share.
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
        # Here, not above: the import takes most of a second.
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
            # The console is in train.log; W&B's summary table would follow our own.
            settings=wandb.Settings(console="off", quiet=True),
        )
        # Resumed online, W&B says which step it expects; a new or an offline run expects 0.
        self._first = self._run.step if resume else 0
        # Both kinds of events have it, and runs with other batches can be compared over it.
        self._run.define_metric(TOKENS)
        for curves_of in ("train/*", "val/*"):
            self._run.define_metric(curves_of, step_metric=TOKENS)
        for event in history:
            self.log(event)

    def log(self, event: MetricRecord) -> None:
        """Send an event, unless W&B has its step from an earlier process. Does not wait."""
        axis = {TOKENS: event[TOKENS]} if TOKENS in event else {}
        self._send(int(event["step"]), {**scalars(event), **axis})

    def text(self, step: int, text: str) -> None:
        """Send a text sample, shown verbatim."""
        self._send(step, {"sample": self._html(f"<pre>{html.escape(text)}</pre>")})

    def flush(self) -> None:
        """W&B's own process takes every event at once; there is nothing to wait for."""

    def close(self) -> None:
        """End this process's part of the run; online, waits until everything is sent."""
        self._run.finish()

    def _send(self, step: int, values: dict[str, Any]) -> None:
        if step >= self._first and step not in self._sent:
            self._run.log(values, step=step)


def service_progress() -> float:
    """Return the CPU seconds that W&B's own processes have used: they move as long as it works."""
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
        f"Goes on from step {origin[1]} of run {origin[0]}, with other settings."
        if origin
        else None
    )


def _mode(settings: Any, environ: Mapping[str, str]) -> Literal["offline"] | None:
    """Offline where W&B would otherwise ask for an account; None leaves the choice to W&B.

    Args:
        settings: W&B's own, from its files and the environment.
        environ: the environment's variables.
    """
    chosen = "WANDB_MODE" in environ or settings.mode != "online"
    if chosen or settings.api_key or any(environ.get(name) for name in _KEY_VARIABLES):
        return None
    if _in_netrc(urlsplit(settings.base_url).netloc, environ):
        return None
    _log.warning(
        "no W&B account found, so W&B writes offline files: `wandb login` makes later runs "
        "go online, `wandb sync` uploads this one"
    )
    return "offline"


def _in_netrc(host: str, environ: Mapping[str, str]) -> bool:
    """Whether the user's netrc file, where `wandb login` leaves its key, knows the host."""
    path = Path(environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
