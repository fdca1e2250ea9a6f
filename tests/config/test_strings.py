"""Tests that a string key gets the typed string, and not a number that it looks like."""

import pytest

from gpt2ckpt.config.compose import compose_config, sweep_jobs
from gpt2ckpt.config.strings import quote_numbers


@pytest.mark.parametrize(
    "text",
    ["2024_11_28", "1e3", "true", "007", "1.50", "1_000.5", "nan", "-inf", "0x1f", "on", "no"],
)
def test_string_that_looks_like_a_number_is_kept(text: str) -> None:
    arguments = quote_numbers(
        [f"name={text}", f"trainer.sample_prompt={text}", f"+resume={text}"], "train"
    )
    values = compose_config("train", arguments).values
    assert values["name"] == values["trainer"]["sample_prompt"] == values["resume"] == text
    arguments = quote_numbers([f"hydra.run.dir={text}", f"++logger.wandb_tags=[a,{text}]"], "train")
    composed = compose_config("train", arguments)
    assert composed.hydra.run.dir == text
    assert composed.values["logger"]["wandb_tags"] == ["a", text]


def test_strings_of_a_sweep_that_look_like_numbers_are_kept() -> None:
    jobs = sweep_jobs(quote_numbers(["name=2024_11_28,b,1e3"], "train"))
    names = [compose_config("train", job).values["name"] for job in jobs]
    assert names == ["2024_11_28", "b", "1e3"]


@pytest.mark.parametrize(
    "argument",
    [
        *("seed=1_000", "optimizer.lr=1e-3", "checkpoint.save_epochs=true", "model=gpt2_nano"),
        *("name=null", "name=abc", "name='1e3'", "name=${seed}", "name=v1.0", "~experiment"),
        *(
            "name=range(1,3)",
            "name=choice(1,2)",
            "name",
            "name=[",
            "no.such.key=1e3",
            "trainer={batch_size:4}",
        ),
    ],
)
def test_other_overrides_are_not_changed(argument: str) -> None:
    assert quote_numbers([argument], "train") == [argument]


def test_string_keys_of_other_commands_are_quoted() -> None:
    assert quote_numbers(["prompt=1e3", "ckpt=007"], "sample")[0] == "prompt='1e3'"
    arguments = ["data.train=2024_11_28", "out=2024_11"]
    assert quote_numbers(arguments, "prepare") == ["data.train='2024_11_28'", "out='2024_11'"]
