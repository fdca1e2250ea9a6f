"""Three ranks, where sums depend on the order of the ranks."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("three_ranks.py")


@pytest.fixture(scope="module")
def findings() -> list[dict[str, Any]]:
    """Return the results of each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SCRIPT), str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_resume_with_three_ranks_is_bitwise_exact(findings: list[dict[str, Any]]) -> None:
    assert [found["same_bits"] for found in findings] == [True] * 3


def test_distributed_evaluation_equals_single_process_bitwise(
    findings: list[dict[str, Any]],
) -> None:
    for finding in ("same_evaluation", "same_order", "order_shows"):
        assert [found[finding] for found in findings] == [True] * 3, finding


def test_all_reduce_is_equal_on_all_ranks(findings: list[dict[str, Any]]) -> None:
    assert [found["largest"] for found in findings] == [[2, 0]] * 3
    assert [found["mean"] for found in findings] == [1.0] * 3


def test_stop_of_one_rank_stops_evaluation_on_all(
    findings: list[dict[str, Any]],
) -> None:
    assert [found["stopped_evaluation"] for found in findings] == [None] * 3
