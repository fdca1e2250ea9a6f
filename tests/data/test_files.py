"""Paths and globs in data.train expand to files."""

from pathlib import Path

import pytest

from gpt2ckpt.data.files import expand_files
from gpt2ckpt.errors import ConfigError, InputError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "note [1], draft.txt", "other.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "deep"))
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("a.txt", ["a.txt"]),
        ("?.txt", ["a.txt", "b.txt"]),
        ("b.txt, a.txt,b.txt,", ["a.txt", "b.txt"]),
        ("**/*.txt", ["a.txt", "b.txt", "deep/er/c.txt", "note [1], draft.txt"]),
        ("**/c*", ["deep/er/c.txt"]),
        ("note [1], draft.txt", ["note [1], draft.txt"]),
        ("*", ["a.txt", "b.txt", "note [1], draft.txt", "other.md"]),
        ("a.txt,*.md", ["a.txt", "other.md"]),
    ],
)
@pytest.mark.usefixtures("tree")
def test_patterns_expand_to_sorted_files(patterns: str, names: list[str]) -> None:
    assert [str(path) for path in expand_files("data.train", patterns)] == names


def test_home_and_absolute_patterns_expand(tree: Path) -> None:
    expected = [tree / "deep/er/c.txt"]
    assert expand_files("data.train", "~/er/*.txt") == expected
    assert expand_files("data.train", "~/er/c.txt") == expected
    assert expand_files("data.train", f"{tree}/deep/**/*.txt") == expected


@pytest.mark.usefixtures("tree")
def test_pattern_without_a_match_is_an_error_that_names_it() -> None:
    with pytest.raises(InputError, match=r"data\.val='z\*\.txt': no file matches"):
        expand_files("data.val", "a.txt,z*.txt")
    with pytest.raises(
        InputError, match=r"missing\.txt.: no such file .*Pass existing files, e\.g\. data"
    ):
        expand_files("data.train", "missing.txt")
    with pytest.raises(InputError, match=r"deep.: it is a folder.*deep/\*\*/\*"):
        expand_files("data.train", "deep")
    with pytest.raises(InputError, match="no such file"):
        expand_files("data.train", "x" * 5000)


@pytest.mark.parametrize("nothing", ["", "  ", "???"])
def test_missing_pattern_is_a_config_error(nothing: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.train is not set"):
        expand_files("data.train", nothing)
