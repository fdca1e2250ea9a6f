"""Almost valid inputs: changed bytes, changed JSON, and checkpoints with a recomputed seal."""

import json
import random
from io import BytesIO
from typing import Any
from zipfile import ZipFile

from gpt2ckpt.checkpoint import format

NUMBERS = [0, 1, -1, 7, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64, 10**300]
STRINGS = [
    *("", "x", "\x00", "\x1b[31m", "\udcff", "../../../etc/passwd", "/etc/passwd", "a" * 5000),
    *("${oc.env:HOME}", "${oc.decode:'1'}", "${a}", "???", "_target_", "os.system", "nan", "\n"),
    *("float32", "$tensor", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00", "%s%n", "{0.a}"),
    *("experiment=../../evil", "+hydra.callbacks.a._target_=os.system", "~model", "a=[", "\\", "'"),
]
WORDS = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF]


def bytes_like(corpus: bytes, dice: random.Random, others: list[bytes]) -> bytes:
    """Return `corpus` with one to four changes, or sometimes unrelated bytes."""
    if dice.randrange(50) == 0:
        return dice.choice([b"", dice.randbytes(dice.randrange(3000)), dice.choice(others)])
    data = bytearray(corpus)
    for _ in range(dice.choice((1, 1, 2, 4))):
        _change(data, dice, others)
    return bytes(data)


def _change(data: bytearray, dice: random.Random, others: list[bytes]) -> None:
    at = dice.randrange(len(data) + 1)
    size = dice.choice((1, 2, 8, 64, 600))
    match dice.randrange(9):
        case 0 | 1 if data:
            data[at % len(data)] ^= 1 << dice.randrange(8)
        case 2:
            data[at : at + size] = dice.randbytes(size)
        case 3:
            del data[at : at + size]
        case 4:
            data[at:at] = data[at : at + size] * dice.choice((1, 2, 50))
        case 5:
            del data[at:]
        case 6:
            width = dice.choice((1, 2, 4, 8))
            data[at : at + width] = (dice.choice(WORDS) % (1 << 8 * width)).to_bytes(
                width, "little"
            )
        case 7:
            other = dice.choice(others)
            start = dice.randrange(len(other) + 1)
            data[at : at + size] = other[start : start + size]
        case _:
            deep = dice.choice((100, 5000)) * 10
            data[at:at] = dice.choice((b"[", b'{"a":', b"(", b"\x80", b"9", b"\xff", b"}")) * deep


def json_like(value: Any, dice: random.Random) -> Any:
    """Return `value` with one to three entries changed, removed, added or moved."""
    changed = json.loads(json.dumps(value))
    for _ in range(dice.choice((1, 1, 2, 3))):
        changed = _change_entry(changed, dice)
    return changed


def _change_entry(value: Any, dice: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value or dice.randrange(12) == 0:
        return _some(dice)
    key = dice.choice(list(value)) if isinstance(value, dict) else dice.randrange(len(value))
    match dice.randrange(8):
        case 0:
            del value[key]
        case 1 if isinstance(value, dict):
            value[dice.choice(STRINGS)] = _some(dice)
        case 1:
            value.insert(key, _some(dice))
        case 2:
            other = (
                dice.choice(list(value)) if isinstance(value, dict) else dice.randrange(len(value))
            )
            value[key], value[other] = value[other], value[key]
        case _:
            value[key] = _change_entry(value[key], dice)
    return value


def _some(dice: random.Random) -> Any:
    """Return a JSON value that is likely to cause problems."""
    match dice.randrange(8):
        case 0 | 1:
            return dice.choice(NUMBERS)
        case 2 | 3:
            return dice.choice(STRINGS)
        case 4:
            return dice.choice([None, True, False, 0.5, -0.0, 1e308, float("inf"), float("nan")])
        case 5:
            return {"_target_": "os.system", "command": "false"}
        case 6:
            return {"$tensor": [dice.choice(NUMBERS), "float32", [dice.choice(NUMBERS)]]}
        case _:
            return [[]] if dice.randrange(3) else _deep(dice.choice((50, 900)))


def _deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


class Sealed:
    """Checkpoints with changed metadata or tables and a valid seal."""

    def __init__(self, own: bytes) -> None:
        with ZipFile(BytesIO(own)) as file:
            self.records = {n.partition("/")[2]: file.read(n) for n in file.namelist()}
        self.parts = {
            name: json.loads(self.records[name]) for name in ("meta.json", "tensors.json")
        }

    def make(self, dice: random.Random) -> bytes:
        """Return a changed and resealed checkpoint."""
        name = dice.choice(("meta.json", "meta.json", "tensors.json"))
        text = json.dumps(json_like(self.parts[name], dice))
        if dice.randrange(20) == 0:  # what json.dumps would not write
            text = text.replace('"step"', '"step": 1, "step"', 1).replace(":", ': 1e999, "a":', 1)
        records = {**self.records, name: text.encode("utf-8", "surrogatepass")}
        return b"".join(format._seal(list(records.items())).buffers)
