"""The container of a checkpoint: an uncompressed zip archive, as PyTorch reads it.

Writing only needs the sizes and CRCs of the records, so a whole file is laid out before its first
byte is written. Reading trusts nothing: every offset is checked against the size of the file.

Source: PKWARE APPNOTE 6.3.10, §4.3 (records) and §4.5.3 (zip64).
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO

ALIGNMENT = 64  # bytes, as in PyTorch, so that a memory-mapped tensor is aligned
LOCAL_HEADER = struct.Struct("<IHHHHHIIIHH")
CENTRAL_HEADER = struct.Struct("<IHHHHHHIIIHHHHHII")
END_RECORD = struct.Struct("<IHHHHIIH")
ZIP64_END_RECORD = struct.Struct("<IQHHIIQQQQ")
ZIP64_LOCATOR = struct.Struct("<IIQI")
LOCAL_SIGNATURE, CENTRAL_SIGNATURE, END_SIGNATURE = 0x04034B50, 0x02014B50, 0x06054B50
ZIP64_END_SIGNATURE, ZIP64_LOCATOR_SIGNATURE = 0x06064B50, 0x07064B50
PADDING_ID = 0x4246  # the extra field in which PyTorch keeps its padding
SATURATED = 0xFFFFFFFF
LARGEST_RECORD = 1 << 26  # bytes read at once; 100,000 tensors are described in a quarter of it
FIRST_OF_1980 = 0x21  # a fixed date, so that equal states are equal files


@dataclass(frozen=True)
class Record:
    """One file of the archive: its name, its length in bytes and its CRC-32."""

    name: str
    size: int
    crc: int


@dataclass(frozen=True)
class Placed:
    """A record with its header, and the offsets of the header and of the data."""

    record: Record
    header: bytes
    header_offset: int
    data_offset: int

    @property
    def end(self) -> int:
        return self.data_offset + self.record.size


class ArchiveError(Exception):
    """The bytes are not an archive that this module wrote."""


def place(record: Record, offset: int) -> Placed:
    """Place `record` at `offset` after a local header, which is padded to align the data."""
    name = record.name.encode()
    extra = b""
    if record.size >= SATURATED:
        extra = struct.pack("<HHQQ", 1, 16, record.size, record.size)
    unpadded = offset + LOCAL_HEADER.size + len(name) + len(extra) + 4
    padding = -unpadded % ALIGNMENT
    extra += struct.pack("<HH", PADDING_ID, padding) + b"Z" * padding
    header = LOCAL_HEADER.pack(LOCAL_SIGNATURE, *_common_fields(record, name, extra))
    header += name + extra
    return Placed(record, header, offset, offset + len(header))


def _common_fields(record: Record, name: bytes, extra: bytes) -> tuple[int, ...]:
    """Return the fields, in order, that the local and the central header of a record share."""
    size = min(record.size, SATURATED)
    return (
        45,  # version needed
        0,  # flags
        0,  # method: stored
        0,  # time
        FIRST_OF_1980,
        record.crc,
        size,  # compressed
        size,
        len(name),
        len(extra),
    )


def directory(placed: list[Placed], comment: bytes) -> bytes:
    """Return the central directory: the end of the archive, with `comment` as its last bytes."""
    start = placed[-1].end
    entries = b"".join(_central_header(p) for p in placed)
    end = b""
    if start >= SATURATED or len(placed) >= 0xFFFF:
        count = len(placed)
        end += ZIP64_END_RECORD.pack(
            ZIP64_END_SIGNATURE,
            ZIP64_END_RECORD.size - 12,
            45,  # version made by
            45,  # version needed
            0,  # this disk
            0,  # disk of the directory
            count,  # entries on this disk
            count,  # entries in total
            len(entries),
            start,
        )
        end += ZIP64_LOCATOR.pack(ZIP64_LOCATOR_SIGNATURE, 0, start + len(entries), 1)
    count = min(len(placed), 0xFFFF)
    end += END_RECORD.pack(
        END_SIGNATURE,
        0,  # this disk
        0,  # disk of the directory
        count,  # entries on this disk
        count,  # entries in total
        len(entries),
        min(start, SATURATED),
        len(comment),
    )
    return entries + end + comment


def _central_header(placed: Placed) -> bytes:
    record, name = placed.record, placed.record.name.encode()
    wide = b""
    if record.size >= SATURATED:
        wide += struct.pack("<QQ", record.size, record.size)
    if placed.header_offset >= SATURATED:
        wide += struct.pack("<Q", placed.header_offset)
    extra = struct.pack("<HH", 1, len(wide)) + wide if wide else b""
    offset = min(placed.header_offset, SATURATED)
    header = CENTRAL_HEADER.pack(
        CENTRAL_SIGNATURE,
        45,  # version made by
        *_common_fields(record, name, extra),
        0,  # length of the comment
        0,  # disk
        0,  # internal attributes
        0,  # external attributes
        offset,
    )
    return header + name + extra


def read_record(file: BinaryIO, offset: int, name: str, file_size: int) -> tuple[bytes, int]:
    """Return the bytes of the record `name` with its local header at `offset`, and its end.

    Raises ArchiveError if there is no such record within `file_size` bytes, or if it has more than
    LARGEST_RECORD bytes.
    """
    file.seek(offset)
    header = file.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size:
        raise ArchiveError("the file ends too early")
    signature, _, _, method, _, _, _, size, _, name_size, extra_size = LOCAL_HEADER.unpack(header)
    data = offset + LOCAL_HEADER.size + name_size + extra_size
    if signature != LOCAL_SIGNATURE or method != 0 or file.read(name_size) != name.encode():
        raise ArchiveError(f"there is no record {name} at byte {offset}")
    if data + size > file_size:
        raise ArchiveError("the file ends too early")
    if size > LARGEST_RECORD:
        raise ArchiveError(f"{name} has {size:,} bytes, and {LARGEST_RECORD:,} are the most")
    file.seek(data)
    return file.read(size), data + size
