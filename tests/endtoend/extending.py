"""The examples of docs/extending.md: their files, their commands and the output that is printed."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
SECTION = re.compile(
    r"as `(\w+)\.py`.*?```python\n(.*?)```\n\n```\n(\$ .*?)```", re.DOTALL
)  # module, source, console
NUMBER = re.compile(r"<?\d[\d.,_]*")


def examples() -> dict[str, tuple[str, str]]:
    """Return the source and the console session of each example by its module."""
    return {name: (source, console) for name, source, console in SECTION.findall(PAGE.read_text())}


def write_examples(folder: Path, *modules: str) -> None:
    """Write the files of the examples `modules` into a folder."""
    for module in modules:
        (folder / f"{module}.py").write_text(examples()[module][0])


def sessions(console: str) -> list[tuple[str, list[str]]]:
    """Return each command of a console session with the lines that it prints."""
    parts = console.removeprefix("$ ").split("\n$ ")
    return [(part.splitlines()[0], part.splitlines()[1:]) for part in parts]


def prints(output: str, documented: list[str]) -> bool:
    """Return whether an output has the documented lines; `…` is any lines, a number any number."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "…" else f"{re.escape(NUMBER.sub('#', line))}\n"
        for line in documented
    )
    return re.fullmatch(pattern, NUMBER.sub("#", output)) is not None
