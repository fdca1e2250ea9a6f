"""Text from a model: prompt in, prompt and continuation out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpt2ckpt.data.tokenizer import END_OF_TEXT, gpt2_encoding
from gpt2ckpt.model.generate import generate
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.training.hardware import Hardware


@dataclass(frozen=True)
class Sampling:
    """What to sample; a `temperature` of 0 always takes the likeliest token."""

    prompt: str
    max_tokens: int
    seed: int
    temperature: float = 0.8
    top_k: int | None = 50


def sample_text(
    model: GPT2, sampling: Sampling, hardware: Hardware, stop: Callable[[], bool] = lambda: False
) -> str:
    """One sample, its own random generator drawing from `sampling.seed`; stops at end-of-text.

    It is what there is by then once `stop` says so.
    """
    encoding = gpt2_encoding()
    prompt = encoding.encode_ordinary(sampling.prompt) or [END_OF_TEXT]
    with hardware.autocast():
        [new] = generate(
            model,
            torch.tensor([prompt], device=hardware.device),
            sampling.max_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            generator=torch.Generator().manual_seed(sampling.seed),
            stop=stop,
        )
    return sampling.prompt + encoding.decode(new)
