"""`export`: write the model of a checkpoint for other programs."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2ckpt.checkpoint.reading import load_state
from gpt2ckpt.checkpoint.state import CheckpointState
from gpt2ckpt.config.registry import build_model_config
from gpt2ckpt.config.schema import VOCAB_SIZE, ModelConfig
from gpt2ckpt.errors import CheckpointError, ConfigError, InputError
from gpt2ckpt.files import durable
from gpt2ckpt.tools.command_line import Subcommand
from gpt2ckpt.tools.targets import add_path, checkpoint_named
from gpt2ckpt.units import human_bytes

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS = ".safetensors"
WEIGHTS_FILE = "model.safetensors"
# OpenAI's names of the two vocabulary files, and Hugging Face's names.
TOKENIZER_FILES = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    add_path(parser)
    parser.add_argument(
        "--to",
        choices=("hf", "weights"),
        required=True,
        help="hf: a folder for Hugging Face transformers; weights: the model alone as safetensors",
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help=f"a new folder; with --to weights, a new folder or file *{SAFETENSORS}",
    )


def run(args: argparse.Namespace) -> int:
    """Export the model. No existing file is overwritten."""
    out = args.out.expanduser()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists already and is not overwritten: pass a new path")
    path = checkpoint_named(args.path)
    state = load_state(path)
    if args.to == "hf":
        config, weights = _gpt2_of(path, state)
        _publish(out, lambda folder: _write_huggingface(folder, weights, config))
    else:
        weights = state.model if state.setting("model", "kind") else _gpt2_of(path, state)[1]
        metadata = {"step": str(state.step), "config": json.dumps(state.config["model"])}
        inner = WEIGHTS_FILE if out.suffix == SAFETENSORS else ""
        _publish(out, lambda folder: _write_weights(folder, weights, metadata), inner)
    print(f"exported step {state.step} of {path}")
    for file in sorted(out.iterdir()) if out.is_dir() else [out]:
        print(f"  {file} ({human_bytes(file.stat().st_size)})")
    return 0


def _gpt2_of(path: Path, state: CheckpointState) -> "tuple[ModelConfig, dict[str, Tensor]]":
    """Return the config and the weights of a GPT-2.

    Raises:
        InputError: The model is of another kind.
        CheckpointError: The config and the weights do not match.
    """
    from gpt2ckpt.model.convert import check_shapes

    if kind := state.setting("model", "kind"):
        raise InputError(
            f"{path} holds a model of the kind {kind!r}, which transformers cannot load: export "
            "its weights with --to weights"
        )
    try:
        config, weights = build_model_config(state.config["model"]), state.model
        problem = check_shapes(config, weights)
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not hold a model that can be exported: {error}"
        ) from error
    if problem:
        raise CheckpointError(f"{path} cannot be exported: {problem}")
    return config, weights


def _write_huggingface(folder: Path, weights: "dict[str, Tensor]", config: ModelConfig) -> None:
    """Write config.json, the weights, and the tokenizer if the vocabulary is GPT-2's."""
    from gpt2ckpt.data.tokenizer import END_OF_TEXT_NAME, vocabulary_files
    from gpt2ckpt.model.huggingface import save_huggingface

    save_huggingface(folder, weights, config)
    if config.vocab_size < VOCAB_SIZE:
        print(f"wrote no tokenizer: the vocabulary of {config.vocab_size} tokens is not GPT-2's")
        return
    for name, source in vocabulary_files().items():
        shutil.copyfile(source, folder / TOKENIZER_FILES[name])
    described = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": config.block_size,
        "add_prefix_space": False,
        **{f"{kind}_token": END_OF_TEXT_NAME for kind in ("bos", "eos", "unk")},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")


def _write_weights(folder: Path, weights: "dict[str, Tensor]", metadata: dict[str, str]) -> None:
    """Write the state dict with this project's names; of tied tensors, only the first."""
    from safetensors.torch import save_file

    first = {tensor.data_ptr() or name: name for name, tensor in reversed(weights.items())}
    tensors = {name: weights[name] for name in first.values()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt", **metadata})


def _publish(out: Path, write: Callable[[Path], None], inner: str = "") -> None:
    """Write into a temporary folder, then rename the folder, or its file `inner`, to `out`.

    If that fails, the temporary folder is deleted, and InputError is raised.
    """
    temporary = durable.temporary_name(out)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        for path in temporary.iterdir():
            path.chmod(temporary.stat().st_mode & 0o666)  # safetensors makes private files
            durable.sync_file(path)
        durable.sync_directory(temporary)
        (temporary / inner).rename(out)
        durable.sync_directory(out.absolute().parent)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.strerror}): pass a different path"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


SUBCOMMAND = Subcommand(
    "write the model for Hugging Face transformers, or as safetensors",
    (
        "best --to hf exported",
        "outputs/gpt2_run_20251106_143022 --to weights model.safetensors",
    ),
    add_arguments,
    run,
)
