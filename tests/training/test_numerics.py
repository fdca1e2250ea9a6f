"""Checkpoints record every setting that selects different kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2ckpt.training.numerics import CPU_VARIABLES, changed_variables, cpu_flags, numerics

SCRIPT = """
import json, torch
from gpt2ckpt.training.numerics import numerics
print(json.dumps(numerics(torch.device("cpu"))))
"""


def in_a_process(**variables: str) -> dict[str, object]:
    kept = {key: value for key, value in os.environ.items() if key not in CPU_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        **{"env": {**kept, **variables}, "capture_output": True, "text": True, "check": True},
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="it has but one kind of kernels"
)
def test_recorded_instructions_are_those_that_kernels_use() -> None:
    plain, limited = in_a_process(), in_a_process(ATEN_CPU_CAPABILITY="default")
    assert limited.pop("cpu_capability") == "DEFAULT" != plain.pop("cpu_capability")
    assert limited == plain


@pytest.mark.parametrize("name", CPU_VARIABLES)
def test_kernel_variables_are_recorded_while_set(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name, raising=False)
    before = numerics(torch.device("cpu"))
    monkeypatch.setenv(name, "x")
    now = numerics(torch.device("cpu"))
    assert now["variables"] == {**before["variables"], name: "x"}
    assert changed_variables(now["variables"], before["variables"]) == [f"{name} unset → x"]


INTEL = """processor : 0
cpu family : 6
model : 106
model name : Intel Xeon Processor (Icelake)
cache size : 16384 KB
flags : fpu sse sse2 ssse3 sse4_1 avx avx2 fma f16c avx512f avx512_vnni ibpb tsc

processor : 1
flags : fpu sse
"""
ARM = "processor : 0\nFeatures : fp asimd sve bf16 i8mm crc32\nCPU part : 0xd40\n"


@pytest.mark.parametrize(
    ("info", "old", "new", "is_other"),
    [
        (INTEL, " avx512_vnni", "", True),
        (INTEL, " fma", "", True),
        (INTEL, "16384", "32768", True),
        (INTEL, "model : 106", "model : 85", True),
        (INTEL, " ibpb", " ibpb ibrs_enhanced", False),  # a newer Linux kernel lists more flags
        (INTEL, "fpu sse\n", "fpu sse sse2\n", False),  # the flags of a different core
        (ARM, " sve", "", True),
        (ARM, " bf16", "", True),
    ],
)
def test_processor_identity_follows_its_compute_instructions(
    tmp_path: Path, info: str, old: str, new: str, is_other: bool
) -> None:
    digests = []
    for content in (info, info.replace(old, new)):
        (tmp_path / "cpuinfo").write_text(content)
        digests.append(cpu_flags(tmp_path / "cpuinfo"))
    assert (digests[0] != digests[1]) is is_other


def test_unknown_processor_still_has_a_digest(tmp_path: Path) -> None:
    assert len(cpu_flags(tmp_path / "nothing")) == 8
    assert len(cpu_flags(tmp_path)) == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_gpu_capability_and_libraries_are_recorded() -> None:
    found = numerics(torch.device("cuda"))
    assert set(found) >= {"capability", "cuda", "cudnn", "nccl", "torch_build", "variables"}
    assert "cpu_flags" not in found
