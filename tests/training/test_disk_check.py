"""A run whose checkpoints may not fit the disk is reported before it starts."""

from gpt2ckpt.training.disk_check import disk_warnings


def test_checkpoints_larger_than_free_space_are_a_warning() -> None:
    [sentence] = disk_warnings(3_400_000_000, 2_000_000_000)
    assert "may take 3.4 GB more, and 2.0 GB are free" in sentence
    assert disk_warnings(-1, 0) == disk_warnings(7, 7) == []
