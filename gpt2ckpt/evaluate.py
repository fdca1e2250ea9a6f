"""`python -m gpt2ckpt.evaluate ckpt=PATH`: print loss and perplexity on the validation split."""

from gpt2ckpt.signals.early import handle_signals_early

if __name__ == "__main__":
    handle_signals_early()  # before the imports: they take seconds

import sys
from typing import Any

from gpt2ckpt.application import run_simple
from gpt2ckpt.config.checks import at_least
from gpt2ckpt.config.registry import build_data_config
from gpt2ckpt.config.schema import EvaluateConfig
from gpt2ckpt.data.corpus import open_validation
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.loggers.metrics_file import to_json
from gpt2ckpt.runs.layout import OUTPUTS
from gpt2ckpt.runs.resume import Scope, locate
from gpt2ckpt.units import perplexity


def main() -> None:
    """Run the command."""
    run_simple("evaluate", _evaluate)


def _evaluate(config: EvaluateConfig) -> None:
    """Print the mean loss over all blocks of the split, which do not overlap."""
    at_least("batch_size", config.batch_size, 1)
    locate(config.ckpt, Scope(OUTPUTS), key="ckpt")  # raises before the import of torch
    from gpt2ckpt.data.loader import validation
    from gpt2ckpt.training.evaluation import evaluate
    from gpt2ckpt.training.trained_model import is_pretrained, load_trained

    if config.data is None and is_pretrained(config.ckpt):
        raise ConfigError(
            f"ckpt={config.ckpt} holds pretrained weights, which record no validation data: add "
            "data=text data.val=FILES, data=tokens data.val=FILES, or data=embedded"
        )
    trained = load_trained(config.ckpt, config.device, config.precision)
    for path, reason in trained.skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    data = config.data or build_data_config((trained.config or {})["data"])
    shape = trained.shape
    val, description = open_validation(data, shape.vocab_size, shape.block_size)
    batches = validation(val, shape.block_size, config.batch_size)
    result = evaluate(trained.model, batches, trained.hardware, stop=lambda: False)
    assert result is not None  # it is never stopped
    step = "" if trained.step is None else f", step {trained.step}"
    print(f"{trained.path}{step}; {description}")
    answer: dict[str, Any] = {
        "val_loss": result.loss,
        "perplexity": perplexity(result.loss),
        "tokens": result.tokens,
        "step": trained.step,
        "precision": trained.hardware.precision,
    }
    print(to_json(answer))


if __name__ == "__main__":
    main()
