"""Each example of docs/extending.md: a short file, which does what the page prints."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment
from extending import examples, prints, sessions, write_examples

MOST_LINES = 40


@pytest.mark.parametrize("module", examples())
def test_example_prints_what_the_page_shows(module: str, tmp_path: Path) -> None:
    source, console = examples()[module]
    assert len(source.splitlines()) <= MOST_LINES
    write_examples(tmp_path, module)
    for command, documented in sessions(console):
        words = command.replace("python -m", f"{shlex.quote(sys.executable)} -m", 1)
        done = subprocess.run(
            words, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert prints(done.stdout, documented), done.stdout
