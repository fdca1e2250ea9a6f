"""`python -m gpt2ckpt.sample ckpt=PATH prompt=…`: print text that a trained model generates."""

from gpt2ckpt.signals.early import handle_signals_early

if __name__ == "__main__":
    handle_signals_early()  # before the imports: they take seconds

import sys

from gpt2ckpt.application import run_simple
from gpt2ckpt.config.checks import at_least
from gpt2ckpt.config.schema import SampleConfig
from gpt2ckpt.runs.layout import OUTPUTS
from gpt2ckpt.runs.resume import Scope, locate


def main() -> None:
    """Run the command."""
    run_simple("sample", _sample)


def _sample(config: SampleConfig) -> None:
    at_least("max_tokens", config.max_tokens, 1)
    at_least("num_samples", config.num_samples, 1)
    at_least("temperature", config.temperature, 0)
    at_least("top_k", config.top_k, 1)
    at_least("seed", config.seed, 0)
    locate(config.ckpt, Scope(OUTPUTS), key="ckpt")  # raises before the import of torch
    from gpt2ckpt.training.sampling import Sampling, notice, sample_text
    from gpt2ckpt.training.trained_model import load_trained

    trained = load_trained(config.ckpt, config.device, config.precision)
    for path, reason in trained.skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    if warning := notice(config.prompt, trained.shape.vocab_size):
        print(warning, file=sys.stderr)
    for number in range(config.num_samples):
        sampling = Sampling(
            prompt=config.prompt,
            max_tokens=config.max_tokens,
            seed=config.seed + number,
            temperature=config.temperature,
            top_k=config.top_k,
        )
        if number:
            print("-" * 40)
        print(sample_text(trained.model, trained.shape, sampling, trained.hardware))


if __name__ == "__main__":
    main()
