"""Text samples: the continuation of a prompt.

A model with GPT-2's vocabulary uses GPT-2's tokenizer. A smaller vocabulary consists of other
tokens, such as characters. Only their ids are known, so prompts and samples are lists of token ids.
"""

import json
import logging
import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from gpt2ckpt.config.registry import option_of
from gpt2ckpt.config.schema import END_OF_TEXT, VOCAB_SIZE, ModelShape
from gpt2ckpt.data.tokenizer import gpt2_encoding, token_ids
from gpt2ckpt.model.generate import generate
from gpt2ckpt.parallel.process_group import ProcessGroup
from gpt2ckpt.training.hardware import Hardware
from gpt2ckpt.worker import Worker

log = logging.getLogger(__name__)

T = TypeVar("T")
Stop = Callable[[], bool]
LOAD_SECONDS = 5.0  # a sample waits at most this long for the files of the tokenizer
FIRST_TOKEN = 0  # the first token of a text if the vocabulary has no end-of-text token


@dataclass(frozen=True)
class Sampling:
    """The settings of a sample; a temperature of 0 always takes the most likely token."""

    prompt: str
    max_tokens: int
    seed: int
    temperature: float = 0.8
    top_k: int | None = 50


def sample_text(
    model: nn.Module,
    shape: ModelShape,
    sampling: Sampling,
    hardware: Hardware,
    stop: Stop = lambda: False,
) -> str:
    """Return one sample, which ends at the end-of-text token or once `stop` returns true.

    The sample has its own random generator, so that training does not depend on it.
    """
    prompt = encode_prompt(sampling.prompt, shape.vocab_size)
    new = _continue(model, prompt, sampling, shape=shape, hardware=hardware, stop=stop)
    return _text(sampling.prompt, prompt, new, shape.vocab_size)


def encode_prompt(prompt: str, vocabulary: int) -> list[int]:
    """Return the token ids of a prompt, at least one; `notice` reports an unsuitable prompt."""
    if vocabulary >= VOCAB_SIZE:
        return gpt2_encoding().encode_ordinary(prompt) or [END_OF_TEXT]
    return token_ids(prompt, vocabulary) or [FIRST_TOKEN]


def notice(prompt: str, vocabulary: int) -> str:
    """Return how to read the samples of a model; empty if they are plain text."""
    if vocabulary >= VOCAB_SIZE:
        return ""
    sentence = (
        f"the model's vocabulary has {vocabulary:,} tokens, which are not GPT-2's: samples are "
        "shown as token ids"
    )
    if not prompt or token_ids(prompt, vocabulary):
        return sentence
    return (
        f"{sentence}, and start with token {FIRST_TOKEN} instead of the prompt {prompt!r}. Pass "
        f"a prompt of token ids below {vocabulary:,}, such as '1 2 3'"
    )


class Sampler:
    """Samples text during training; a failed sample never stops the training.

    A failure is logged once, until samples work again. All ranks of a sharded model sample
    together; otherwise only the first rank does.
    """

    def __init__(
        self,
        model: nn.Module,
        shape: ModelShape,
        sampling: Sampling,
        hardware: Hardware,
        group: ProcessGroup,
        *,
        is_sharded: bool = False,
    ) -> None:
        self._model, self._shape = model, shape
        self._sampling, self._hardware = sampling, hardware
        self._group, self._is_sharded = group, is_sharded
        self._notice = notice(sampling.prompt, shape.vocab_size)
        self._is_failing = False
        self._loading: futures.Future[list[int]] | None = None  # of the tokenizer and the prompt
        self._load_begun = 0.0

    def load(self) -> None:
        """Start to read the tokenizer's files in a thread, since their disk may hang."""
        self._loading, self._load_begun = futures.Future(), time.monotonic()
        worker = Worker("tokenizer", limit=1)
        worker.submit(partial(_load, self._loading, self._sampling.prompt, self._shape.vocab_size))
        worker.close()

    def __call__(self, stop: Stop) -> str | None:
        """Return a sample; None on a rank that shows none, and after a failure."""
        is_first = self._group.is_first
        prompt = self._tolerate(self._encode) if is_first else None
        if self._is_sharded:
            prompt = json.loads(self._group.broadcast(json.dumps(prompt)))
            # Errors are raised here: each layer communicates, so an error must end all ranks.
            new = self._continue_together(prompt, stop) if prompt else None
        else:
            new = self._tolerate(lambda: self._continue(prompt, stop)) if prompt else None
        if new is None or prompt is None or not is_first:
            return None
        written, vocabulary = self._sampling.prompt, self._shape.vocab_size
        text = self._tolerate(lambda: _text(written, prompt, new, vocabulary))
        if text is not None:
            self._is_failing = False
        return text

    def _encode(self) -> list[int]:
        if self._notice:
            log.info("%s", self._notice)
            self._notice = ""
        if self._loading is None:
            self.load()
        assert self._loading is not None
        left = self._load_begun + LOAD_SECONDS - time.monotonic()
        try:
            prompt = self._loading.result(max(0.0, left))
        except futures.TimeoutError:
            raise TimeoutError("the files of the tokenizer are still being read") from None
        except Exception:
            self._loading = None  # the next sample tries again
            raise
        return prompt

    def _continue(self, prompt: list[int], stop: Stop) -> list[int]:
        return _continue(
            self._model,
            prompt,
            self._sampling,
            shape=self._shape,
            hardware=self._hardware,
            stop=stop,
        )

    def _continue_together(self, prompt: list[int], stop: Stop) -> list[int]:
        from gpt2ckpt.parallel.fsdp import unsharded_outer_layers

        with unsharded_outer_layers(self._model):
            # All ranks must stop after the same token.
            return self._continue(prompt, lambda: self._group.all_reduce_max([stop()]) == [1])

    def _tolerate(self, action: Callable[[], T]) -> T | None:
        """Return the result of `action`; if it raises, log a warning and return None."""
        try:
            return action()
        except Exception as error:
            if not self._is_failing:
                reason = str(error) or type(error).__name__
                log.warning("no text sample: %s; training continues", reason)
            self._is_failing = True
            return None


def _load(loading: "futures.Future[list[int]]", prompt: str, vocabulary: int) -> None:
    try:
        loading.set_result(encode_prompt(prompt, vocabulary))
    except BaseException as error:
        loading.set_exception(error)


def _continue(
    model: nn.Module,
    prompt: list[int],
    sampling: Sampling,
    *,
    shape: ModelShape,
    hardware: Hardware,
    stop: Stop,
) -> list[int]:
    with option_of("model", shape).named_errors(), hardware.autocast():
        [new] = generate(
            model,
            torch.tensor([prompt], device=hardware.device),
            sampling.max_tokens,
            block_size=shape.block_size,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            generator=torch.Generator().manual_seed(sampling.seed),
            stop=stop,
        )
    return new


def _text(written: str, prompt: list[int], new: list[int], vocabulary: int) -> str:
    if vocabulary < VOCAB_SIZE:
        return " ".join(map(str, [*prompt, *new]))
    return written + gpt2_encoding().decode(new)
