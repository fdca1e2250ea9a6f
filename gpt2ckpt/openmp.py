"""The OpenMP wait policy, which the OpenMP library reads once, when torch is imported."""

import os

_POLICY, _SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"


def set_wait_policy() -> None:
    """Let waiting OpenMP threads sleep after about 0.1 ms of busy waiting, unless the user chose.

    The default of GNU OpenMP, a spin count of 300,000, keeps a core busy ten times as long. On two
    cores beside another busy program, a training then runs at 1/20 of its speed, and at 1/4 with
    a spin count of 30,000. Alone it is 4% slower. Call this before torch is imported.
    """
    if _POLICY not in os.environ:
        os.environ.setdefault(_SPINS, "30000")
