"""`python -m gpt2ckpt.prepare data=text data.train=GLOB out=DIR`: tokenize text into shards."""

from gpt2ckpt.signals.early import handle_signals_early

if __name__ == "__main__":
    handle_signals_early()  # before the imports: they take seconds

import glob
import shlex
import sys

from gpt2ckpt.application import run_simple
from gpt2ckpt.config.checks import at_least
from gpt2ckpt.config.replay import Values
from gpt2ckpt.config.schema import PrepareConfig
from gpt2ckpt.data.shards import shard_corpus
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.runs.command import command


def main() -> None:
    """Run the command."""
    run_simple("prepare", _prepare, _check_data)


def _check_data(values: Values) -> None:
    """Raise ConfigError unless the data is text; called before missing keys are refused."""
    data = values["data"]
    kind = data.get("kind") if isinstance(data, dict) else None
    if data is None or kind not in (None, "embedded", "text"):
        holds = "is already sharded" if kind == "tokens" else "holds tokens, not text"
        wrong = "data is missing" if data is None else f"data={kind} {holds}"
        raise ConfigError(
            f"{wrong}: pass data=text data.train=GLOB out=DIR, or data=embedded out=DIR"
        )


def _prepare(config: PrepareConfig) -> None:
    at_least("shard_tokens", config.shard_tokens, 1)
    summary = shard_corpus(config.data, config.out, config.shard_tokens)
    if summary.warning:
        print(f"warning: {summary.warning}", file=sys.stderr)
    out = glob.escape(config.out)
    files = [f"data.{split}={shlex.quote(f'{out}/{split}_*.bin')}" for split in ("train", "val")]
    print(
        f"{len(summary.shards)} shards in {config.out}: {summary.train_tokens:,} training and "
        f"{summary.val_tokens:,} validation tokens. Train on them with\n"
        f"  {command('train', 'data=tokens', *files)}"
    )


if __name__ == "__main__":
    main()
