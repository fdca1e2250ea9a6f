"""The tab key completes groups, options and keys in bash."""

import subprocess
from pathlib import Path

from commands import environment

SCRIPT = r"""
eval "$(gpt2ckpt-train -sc install=bash)"
for line in "gpt2ckpt-train optimizer=m" "gpt2ckpt-train trainer.ba" "gpt2ckpt-train name=It's tr"
do
    COMP_LINE=$line COMP_POINT=${#line} COMPREPLY=()
    COMP_WORDS=(${line%%\'*}) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    hydra_bash_completion
    echo "${COMPREPLY[@]}"
done
"""


def test_bash_completes_options_and_keys(tmp_path: Path) -> None:
    """A line that Hydra parses cannot be completed and prints nothing."""
    command = ["bash", "-c", SCRIPT]
    done = subprocess.run(
        command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines() == ["optimizer=muon", "trainer.batch_size=", ""]
    assert done.stderr == ""
