"""Choice of device, precision and threads, with reasons and errors."""

from dataclasses import replace

import pytest
import torch
from training_helpers import process_switches_restored

from gpt2ckpt.checkpoint.state import Environment
from gpt2ckpt.config.checks import check_hardware
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.training.hardware import choose_hardware, differences, prepare_process

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def test_configured_hardware_is_used() -> None:
    hardware = choose_hardware("cpu", "bfloat16", 3)
    assert (hardware.device, hardware.precision, hardware.threads) == (
        *(torch.device("cpu"), "bfloat16"),
        3,
    )
    assert hardware.device_reason == hardware.precision_reason == "as configured"


@NO_CUDA
def test_auto_gives_its_reason() -> None:
    hardware = choose_hardware("auto", "auto", None)
    if not torch.backends.mps.is_available():
        assert (hardware.device.type, hardware.device_reason) == ("cpu", "no GPU is available")
    assert hardware.precision in ("float32", "bfloat16")
    expected = {
        "float32": "the fastest on this device",
        "bfloat16": "the CPU has instructions for it",
    }
    assert hardware.precision_reason.startswith(expected[hardware.precision])
    assert hardware.threads == torch.get_num_threads()


@NO_CUDA
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_missing_gpu_is_an_error(device: str) -> None:
    with pytest.raises(ConfigError) as raised:
        choose_hardware(device, "auto", None)
    assert (
        str(raised.value) == f"device={device}: PyTorch finds no CUDA device: set it to auto or cpu"
    )


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an Apple GPU")
def test_missing_apple_gpu_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"device=mps: PyTorch finds no Apple GPU"):
        choose_hardware("mps", "auto", None)


def test_float16_on_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"precision=float16 needs a CUDA device: use"):
        choose_hardware("cpu", "float16", None)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps"])
def test_device_names_that_are_accepted(device: str) -> None:
    check_hardware(device, "auto")


@pytest.mark.parametrize("device", ["gpu", "CPU", "cuda:", "cuda:x", "cpu:0", "", "cuda 0"])
def test_device_names_that_are_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=r"it must be auto, cpu, cuda, cuda:N or mps"):
        check_hardware(device, "auto")
    with pytest.raises(ConfigError, match=r"^trainer\.device is "):
        check_hardware(device, "auto", prefix="trainer.")


def test_resume_keeps_recorded_hardware() -> None:
    recorded = Environment(device="cpu", device_name="x", precision="float32", threads=3)
    hardware = choose_hardware("cpu", "auto", None, recorded)
    assert (hardware.precision, hardware.precision_reason) == ("float32", "as before the resume")
    assert hardware.threads == 3
    changed = choose_hardware("cpu", "bfloat16", 1, recorded)  # unless the config sets it
    assert (changed.precision, changed.threads) == ("bfloat16", 1)
    moved = choose_hardware("cpu", "auto", None, replace(recorded, device="cuda"))
    assert moved.precision_reason != "as before the resume"


def test_differences_of_hardware_are_listed() -> None:
    recorded = choose_hardware("cpu", "float32", 2).recorded(ranks=1)
    assert differences(recorded, recorded) == []
    now = choose_hardware("cpu", "bfloat16", 4).recorded(ranks=1)
    assert differences(now, recorded) == ["precision float32 → bfloat16", "threads 2 → 4"]
    assert differences(replace(recorded, nccl="2.1"), recorded) == []
    old = Environment(
        device="cpu", device_name=recorded.device_name, precision="float32", threads=2
    )  # recorded by the first version
    assert differences(recorded, old) == []
    assert differences(recorded, replace(recorded, variables=None)) == []


def test_autocast_uses_the_precision() -> None:
    a = torch.ones(2, 2)
    for precision, dtype in [("float32", torch.float32), ("bfloat16", torch.bfloat16)]:
        with choose_hardware("cpu", precision, 1).autocast():
            assert (a @ a).dtype is dtype


def test_prepare_process_sets_pytorch_switches() -> None:
    hardware = choose_hardware("cpu", "float32", 2)
    with process_switches_restored():
        prepare_process(hardware, deterministic=True)
        assert torch.get_num_threads() == 2
        assert torch.are_deterministic_algorithms_enabled()
