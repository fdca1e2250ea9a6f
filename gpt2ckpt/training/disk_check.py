"""Whether the disk has room for a run, asked before anything of it is written."""

from pathlib import Path

from gpt2ckpt.checkpoint.policy import COPIES
from gpt2ckpt.checkpoint.reservation import RESERVATION, with_margin
from gpt2ckpt.config.checks import FSDP
from gpt2ckpt.config.schema import ModelConfig, TrainConfig
from gpt2ckpt.errors import InputError
from gpt2ckpt.files import disk_usage, durable
from gpt2ckpt.model.counts import count_parameters
from gpt2ckpt.runs.layout import CHECKPOINTS
from gpt2ckpt.runs.start import Start
from gpt2ckpt.units import human_bytes

BYTES_PER_VALUE = 4  # float32
TENSORS_PER_PARAMETER = 4  # itself, AdamW's two moments, and the count of its steps
PARAMETERS_PER_LAYER = 12  # four matrices and two norms, each with a bias
METADATA_BYTES = 1 << 15  # generators, config, overrides
METADATA_BYTES_PER_TENSOR = 640  # its name, digest, place and headers, and what pads it


def check_free_space(start: Start, config: TrainConfig, directory: Path) -> None:
    """Refuse a run whose first save, and the space kept for an emergency save, do not fit.

    What a dead process left in `directory` counts as free: the start removes it. Raises InputError.
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
    """How large a checkpoint of this run is: as the one that it goes on from, else by its tensors.

    Of a new run, the metadata are counted as so many bytes for each tensor, rather too many.
    """
    if start.found is not None:
        return start.found.path.stat().st_size
    tensors = TENSORS_PER_PARAMETER * (PARAMETERS_PER_LAYER * config.model.n_layer + 4)
    metadata = METADATA_BYTES + tensors * METADATA_BYTES_PER_TENSOR
    return _values(config) * BYTES_PER_VALUE + metadata


def memory_needed(config: TrainConfig, ranks: int) -> int:
    """Return the bytes that a rank needs whatever the batch: weights, gradients, moments."""
    values = _values(config) + count_parameters(config.model).total
    return values * BYTES_PER_VALUE // (ranks if config.trainer.parallel == FSDP else 1)


def _values(config: TrainConfig) -> int:
    """How many numbers a checkpoint holds: the weights and their moments."""
    matrices = count_matrices(config.model) if config.optimizer.kind == "muon" else 0
    return 3 * count_parameters(config.model).total - matrices


def count_matrices(model: ModelConfig) -> int:
    """Values in the matrices of the blocks: Muon keeps one moment of each, AdamW two."""
    return 12 * model.n_layer * model.n_embd * model.n_embd
