"""Tests that printed overrides mean the same when they are typed, whatever a path contains."""

import shlex

from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gpt2ckpt.config.compose import as_typed, parse_overrides, quoted

AWKWARD = " =,'\"\\${}[]():*~+@|;#%&\t!<>"
TEXTS = st.text(
    st.one_of(
        st.sampled_from(AWKWARD),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    ),
    max_size=12,
).filter(
    lambda text: text != "???"
)  # means "missing" to OmegaConf, and there is no way to quote it


def meaning(override: str) -> object:
    """Return the value that a composed config has."""
    return OmegaConf.create({"key": parse_overrides([override])[0].value()}).key


@given(TEXTS)
@example("")
@example("runs of mine/lr=3e-4, 'best' \"of\" all\\")
@example("\\'")
@example("Läufe/試験")
@example("a\\${x}\\")
@example("${oc.env:HOME}")
@example("null")
@example("1e3")
def test_quoted_string_survives_hydras_grammar(text: str) -> None:
    assert meaning(f"key={quoted(text)}") == text


@given(TEXTS.filter(str.isprintable))
@example("outputs/gpt2_run_20251106_143022")
@example("007")
@example("true")
def test_printed_override_survives_the_shell(text: str) -> None:
    [argument] = shlex.split(as_typed("key", text))
    assert meaning(argument) == text


def test_plain_path_is_printed_without_quotes() -> None:
    assert as_typed("ckpt", "outputs/gpt2_run_20251106_143022") == (
        "ckpt=outputs/gpt2_run_20251106_143022"
    )
