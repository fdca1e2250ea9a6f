"""Tests that strings are kept as typed, or that the error has the exact form for the shell."""

import re
import shlex
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gpt2ckpt.config.compose import compose_config, explain_argument, in_shell, parse_overrides
from gpt2ckpt.config.strings import quote_strings
from gpt2ckpt.errors import ConfigError

AWKWARD = " =,'\"\\${}[]():*~+@|;#%&\t!<>?`^\n"
CHARACTERS = st.one_of(
    st.sampled_from(AWKWARD), st.characters(exclude_categories=["Cs"], exclude_characters="\0")
)
PROSE = st.text(CHARACTERS, max_size=12).filter(
    lambda text: text != "???" and not (text[:1] in ("'", '"') and text[:1] == text[-1:])
)


def meaning(root: str, argument: str, *, multirun: bool = False) -> object:
    """Return the value that a composed config has."""
    [meant] = quote_strings([argument], root, multirun=multirun)
    return OmegaConf.create({"key": parse_overrides([meant])[0].value()}).key


@given(PROSE)
@example("It's")
@example("Hello, world")
@example("Hello (world")
@example("[INST] Who? [/INST]")
@example("The ")
@example("costs ${PRICE}")
@example("null")
@example("choice(a,b)")
@example("1e3")
@example("C:\\")
def test_prompt_is_kept_as_typed(text: str) -> None:
    assert meaning("sample", f"prompt={text}") == text
    assert meaning("drill", f"trainer.sample_prompt={text}") == text


PATHS = [
    *(
        "dir=a/t.bin",
        "lr=0.1,seed=3/latest.pt",
        "it's here/run",
        "a#b",
        "~/texts/*.txt",
        "läufe/試験",
    ),
    *("a (copy)/x.pt", "[abc]*.bin", "a{1}.bin", "50%/x", "a;b", "a&b", "a!b", "2024_11_28", "1e3"),
    *("true", "C:\\data\\", "a.bin,b.bin", "null.bin", "0x10", "007", "a b"),
]


@pytest.mark.parametrize("text", PATHS)
@pytest.mark.parametrize(
    ("root", "key"),
    [
        *(("train", "+resume"), ("train", "resume"), ("train", "data.train"), ("train", "name")),
        *(("train", "hydra.run.dir"), ("sample", "ckpt"), ("prepare", "out")),
        *(("evaluate", "data.val"), ("drill", "model.init_from")),
    ],
)
def test_path_is_kept_as_typed(root: str, key: str, text: str) -> None:
    assert meaning(root, f"{key}={text}") == text


def test_overrides_that_hydra_reads_correctly_are_not_changed() -> None:
    arguments = [
        *("ckpt='a, b'", 'prompt="x"', "hydra.run.dir=runs/${name}", "data.val=null"),
        *(
            "model=gpt2_small",
            "optimizer.betas=[0.9,0.95]",
            "seed=3",
            "~debug",
            "trainer.threads=2",
        ),
    ]
    assert quote_strings(arguments, "train", multirun=False) == arguments


def test_interpolation_in_a_quoted_path_is_resolved() -> None:
    arguments = quote_strings(["hydra.run.dir=runs/lr=${optimizer.lr}"], "train", multirun=False)
    assert compose_config("train", [*arguments, "optimizer.lr=0.5"]).hydra.run.dir == "runs/lr=0.5"


def test_commas_separate_the_values_of_a_sweep() -> None:
    for argument in ("data.train=a.bin,b.bin", "name=choice(a,b)", "seed=1,2"):
        assert quote_strings([argument], "train", multirun=True) == [argument]


@pytest.mark.parametrize(
    ("argument", "multirun", "texts"),
    [
        ("prompt='It's'", False, ["It's", "'It's'"]),
        ('ckpt="a"b"', False, ['a"b', '"a"b"']),
        ("ckpt=lr=1,lr=2", True, [None, "lr=1,lr=2"]),
    ],
)
def test_ambiguous_string_is_refused_with_both_ways_to_write_it(
    argument: str, multirun: bool, texts: list[str | None]
) -> None:
    """In bash, each of the two printed forms has the meaning that the error states."""
    with pytest.raises(ConfigError) as raised:
        quote_strings([argument], "sample", multirun=multirun)
    forms = re.findall(
        r"write (.+?), (?:or|for one string with commas) (.+?)(?: if|$)", str(raised.value), re.I
    )
    for form, text in zip(forms[0], texts, strict=True):
        [typed] = typed_in_bash(form)
        if text is not None:
            assert meaning("sample", typed) == text
        else:
            assert parse_overrides([typed])[0].value().list[1].text == "lr=2"


def typed_in_bash(line: str) -> list[str]:
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


@given(st.text(CHARACTERS.filter(str.isprintable), max_size=12))
@example("a='It\\'s'")
@example("\\\\'")
def test_quoted_argument_survives_shlex(argument: str) -> None:
    assert shlex.split(in_shell(argument)) == [argument]


def test_quoted_argument_survives_bash() -> None:
    arguments = [
        "prompt='It\\'s'",
        "x='a' $b",
        "y=\\'`",
        "it's!",
        "'",
        "\\",
        "a\"b'c",
        "prompt='Größe'",
    ]
    assert typed_in_bash(" ".join(map(in_shell, arguments))) == arguments


def test_argument_split_off_by_the_shell_is_explained() -> None:
    with pytest.raises(ConfigError) as raised:
        quote_strings(
            ["ckpt=latest", "prompt=Hello", "world", "again", "seed=1"], "sample", multirun=False
        )
    assert str(raised.value) == (
        "'world' is not an override of the form key=value. If it belongs to 'prompt=Hello', quote "
        "both for the shell: 'prompt=Hello world again'"
    )


def test_a_space_before_the_equals_sign_and_a_missing_key_are_explained() -> None:
    assert explain_argument("optimizer.lr =1").endswith("key=value: remove the space before =")
    assert explain_argument("latest", "sample").endswith("key=value: write ckpt=latest")
    assert explain_argument("resume").endswith("key=value: write +resume=latest")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("promt=It's", "there is no config key or group promt. Did you mean prompt?"),
        ("temperature=a=b", "temperature=a=b cannot be read: temperature must be a number"),
        ("hydra.job.x=a=b", "quote it twice: \"hydra.job.x='a=b'\""),
    ],
)
def test_unreadable_values_are_explained(argument: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_config(
            "sample", quote_strings([argument], "sample", multirun=False), None, "sample"
        )
    assert expected in str(raised.value)


def test_experiment_with_a_plus_is_accepted() -> None:
    assert quote_strings(["+experiment=quick"], "train", multirun=False) == ["experiment=quick"]
