"""Whether there is enough disk space for a run, checked before it starts."""

from pathlib import Path

from gpt2ckpt.checkpoint.emergency_reserve import RESERVATION, with_margin
from gpt2ckpt.checkpoint.retention import COPIES
from gpt2ckpt.config.schema import MuonConfig, TrainConfig
from gpt2ckpt.errors import InputError
from gpt2ckpt.files import disk_usage, durable
from gpt2ckpt.model.counts import ModelSize, size_of
from gpt2ckpt.runs.layout import CHECKPOINTS
from gpt2ckpt.runs.start import Start
from gpt2ckpt.units import human_bytes

BYTES_PER_VALUE = 4  # float32
TENSORS_PER_PARAMETER = 4  # the parameter, AdamW's two moments, and its step count
METADATA_BYTES = 1 << 15  # generators, config, overrides
METADATA_BYTES_PER_TENSOR = 640  # name, digest, offset, headers and padding


def check_free_space(start: Start, config: TrainConfig, directory: Path) -> None:
    """Refuse a run if the disk is too full for its first save and the emergency reserve.

    Files that a dead process left in `directory` count as free, since the start deletes them.

    Raises:
        InputError: There is too little free space.
    """
    if not config.checkpoint.enabled:
        return
    size = checkpoint_bytes(start, config)
    needed = COPIES * size + with_margin(size)
    folder = directory / CHECKPOINTS
    left = [*durable.abandoned_temporaries(folder), folder / RESERVATION]
    free = disk_usage.measure_free(folder) + disk_usage.disk_bytes(left)
    if free < needed:
        raise InputError(
            f"the disk of {directory} is full: {human_bytes(free)} are free, and the first "
            f"save with the space kept for an emergency save takes {human_bytes(needed)}: "
            "free space, or train elsewhere with hydra.run.dir=DIR"
        )


def checkpoint_bytes(start: Start, config: TrainConfig) -> int:
    """Return the size of a checkpoint in bytes: that of the resumed one, else an upper estimate."""
    if start.found is not None:
        return start.found.path.stat().st_size
    size = size_of(config.model)
    metadata = METADATA_BYTES + TENSORS_PER_PARAMETER * size.tensors * METADATA_BYTES_PER_TENSOR
    return (count_trained_values(config, size) + size.buffers) * BYTES_PER_VALUE + metadata


def disk_warnings(coming: int, free: int) -> list[str]:
    """Return a warning if the future checkpoints may take more bytes than are free."""
    if coming <= free:
        return []
    return [
        f"the checkpoints may take {human_bytes(coming)} more, and {human_bytes(free)} are free: "
        "saves fail once the disk is full; free space, or keep fewer (checkpoint.keep_rolling, "
        "keep_emergency, keep_epochs)"
    ]


def count_trained_values(config: TrainConfig, size: ModelSize) -> int:
    """Return the number of values in the weights and their optimizer moments.

    Muon keeps only one moment of a matrix.
    """
    return 3 * size.parameters - (size.matrices if isinstance(config.optimizer, MuonConfig) else 0)
