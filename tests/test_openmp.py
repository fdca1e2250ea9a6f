"""The OpenMP wait policy is set unless the user has set it."""

import os

import pytest

from gpt2ckpt.openmp import set_wait_policy


def test_default_spin_count_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "to be restored")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    set_wait_policy()
    assert os.environ["GOMP_SPINCOUNT"] == "30000"


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_wait_policy_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for other in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "as the user has it")
    before = dict(os.environ)
    set_wait_policy()
    assert dict(os.environ) == before
