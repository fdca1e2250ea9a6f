"""The examples of docs/python.md run, and print what the page shows."""

import re
from pathlib import Path

from commands import ROOT, run_program

FENCE = re.compile(r"^```(python)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_examples_of_the_python_page_run_and_print_what_it_shows(tmp_path: Path) -> None:
    blocks = FENCE.findall((ROOT / "docs" / "python.md").read_text())
    program = "\n".join(text for language, text in blocks if language)
    printed = iter(run_program(program, tmp_path).out.splitlines())
    shown = [line for language, text in blocks if not language for line in text.splitlines()]
    assert len(shown) > 10
    for line in shown:  # "…" stands for any text
        pattern = ".*".join(map(re.escape, line.split("…")))
        assert any(re.fullmatch(pattern, other) for other in printed), line
