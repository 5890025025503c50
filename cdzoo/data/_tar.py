"""Tar archives as WebDataset writes them, read forwards, strictly, and without loading what nobody asked for.

The standard library's reader takes a damaged header in the middle of an archive, or the end of a truncated file, for
the end of the archive, and says nothing: samples would be missing. Here an archive ends with its end-of-archive
block or raises. Headers are still parsed by ``tarfile.TarInfo.frombuf``.

Format: POSIX.1-2017, "pax", sections "ustar Interchange Format" and "pax Extended Header"; GNU long names.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from cdzoo.errors import BitstreamError, CdzooError

__all__ = ["Member", "read_member", "read_members"]

_BLOCK = tarfile.BLOCKSIZE
_MAX_NAME_BYTES = 1 << 20


class Member(NamedTuple):
    """A regular file in a tar archive: where its bytes are."""

    name: str
    offset: int
    size: int


def read_member(
    file: BinaryIO, shard: str, member: Member, limit: int, too_large: type[CdzooError] = BitstreamError
) -> bytes:
    """The bytes of one member. Errors name shard and member.

    Raises:
        BitstreamError: it is cut off.
        too_large: it is larger than ``limit``; nothing is read then.
    """
    if member.size > limit:
        raise too_large(
            f"{shard}: member {member.name!r} has {member.size} bytes, more than the limit of {limit}; "
            "if you trust the source, pass a larger max_stream_bytes."
        )
    file.seek(member.offset)
    data = file.read(member.size)
    if len(data) != member.size:
        raise BitstreamError(
            f"{shard}: truncated in member {member.name!r}; {len(data)} of {member.size} bytes are there."
        )
    return data


def read_members(file: BinaryIO, shard: str) -> Iterator[Member]:
    """The regular files in an open archive, in order. The caller may read elsewhere in it between two of them.

    Raises:
        BitstreamError: the archive is damaged or truncated; names it and the place. Complete members before that
            place have been given out.
    """
    total = os.fstat(file.fileno()).st_size
    position, place = 0, "at its very beginning"
    overrides: dict[str, str] = {}  # name and size of the next member, from the extended headers before it
    while True:
        file.seek(position)
        block = file.read(_BLOCK)
        if len(block) < _BLOCK:
            raise BitstreamError(f"{shard}: truncated tar: it ends {place}, without an end-of-archive block.")
        if not any(block):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            name, size = overrides.get("path", info.name), int(overrides.get("size", info.size))
            if size < 0 or info.type == tarfile.GNUTYPE_SPARSE:
                raise ValueError(f"member {name!r} is sparse or of negative size")
            position += _BLOCK
            if info.type in _EXTENSIONS:
                if size > _MAX_NAME_BYTES:
                    raise ValueError(f"an extended header of {size} bytes")
                header = read_member(file, shard, Member("extended header", position, size), size)
                overrides |= _parse_extension(info.type, header)
            else:
                overrides = {}
                if info.type not in _EMPTY and position + size > total:
                    raise BitstreamError(
                        f"{shard}: truncated in member {name!r}: {max(0, total - position)} of {size} bytes are there."
                    )
                if info.isreg():
                    yield Member(name, position, size)
                place = f"after member {name!r}"
        except BitstreamError:
            raise
        except (tarfile.HeaderError, ValueError) as error:
            packed = "; it is compressed by gzip, unpack it" if block[:2] == b"\x1f\x8b" else ""
            raise BitstreamError(f"{shard}: damaged tar, {place}: {error}{packed}.") from error
        if info.type not in _EMPTY:
            position += -(-size // _BLOCK) * _BLOCK


_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE, *_PAX)
_EMPTY = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


def _parse_extension(kind: bytes, data: bytes) -> dict[str, str]:
    """What an extended header says of the next member's path and size; raises ``ValueError`` if it is damaged."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    while data and kind in _PAX:  # records "%d %s=%s\n" of length, keyword and value; the length counts its own digits
        digits = data[: data.index(b" ")]
        length = int(digits)
        keyword, _, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if length <= len(digits) or data[length - 1 : length] != b"\n":
            raise ValueError(f"a record of length {length} in an extended header")
        if keyword in (b"path", b"size"):
            found[keyword.decode()] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return found
