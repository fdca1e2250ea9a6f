"""Reads W&B's offline files to find the steps that earlier processes of a run logged.

Offline, each process writes one file, and no server records the steps. The files must be read,
because a killed process may have lost its last events. A file is a header of 7 bytes and a log of
protobuf records in the format of LevelDB
(https://github.com/google/leveldb/blob/main/doc/log_format.md).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FILE_HEADER = 7
_BLOCK = 32 * 1024
_CHUNK = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def recorded_steps(wandb_dir: Path, run_id: str) -> set[int]:
    """Return the steps of all history records in the offline files of a W&B run."""
    files = wandb_dir.glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")
    return {step for path in files for step in _steps(path)}


def _steps(path: Path) -> Iterator[int]:
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    record_type: Any = vars(wandb_internal_pb2)["Record"]  # created at import
    for data in _records(path.read_bytes()):
        try:
            record = record_type.FromString(data)
        except DecodeError:
            return
        if record.HasField("history"):
            yield record.history.step.num


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the complete records of a log; a truncated record at the end is ignored."""
    position, parts = _FILE_HEADER, bytearray()
    while position + _CHUNK.size <= len(content):
        left_in_block = _BLOCK - position % _BLOCK
        if left_in_block < _CHUNK.size:
            position += left_in_block
            continue
        _, length, kind = _CHUNK.unpack_from(content, position)
        position += _CHUNK.size
        chunk = content[position : position + length]
        position += length
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or len(chunk) < length:
            return
        if kind in (_FULL, _FIRST):
            parts = bytearray()
        parts += chunk
        if kind in (_FULL, _LAST):
            yield bytes(parts)
