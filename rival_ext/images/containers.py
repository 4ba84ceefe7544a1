"""Picture files looked at from outside: which of them are made to cost more than their pixels do.

Decoders copy what stands beside the pixels, some of it again and again: a file of 1 MB can take hours, or 60 GB, before
it says how large its picture is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from struct import Struct, unpack, unpack_from
from typing import NamedTuple

MOST_SCANS = 100
"""Of a progressive JPEG, each of which goes over all of its pixels; encoders write some ten."""

MOST_SEGMENTS = 10_000
MOST_CHUNKS = 200_000
MOST_BYTES_BESIDE = 2**20
"""Of a GIF, before its first frame."""

MOST_VALUES = 2**20
"""Of one tag: where each strip of a TIFF lies."""

MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])", re.DOTALL)
"""Of a JPEG, outside of the pixels' own codes."""

ALONE = (0x01, 0xD8)
END, SCAN = 0xD9, 0xDA
EXIF = b"Exif\0\0"
DIRECTORY = re.compile(rb"II\*\0|MM\0\*")
BYTES_OF_VALUE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""By a tag's type."""

ORIENTATION = 0x0112
UPRIGHT = 1


class Tag(NamedTuple):
    """An entry of a TIFF's or an EXIF's directory: its number, type, how many values, and these or where they are."""

    number: int
    kind: int
    number_of_values: int
    values: bytes

    @property
    def size(self) -> int:
        """Bytes that its values take."""
        return self.number_of_values * BYTES_OF_VALUE.get(self.kind, 0)


def is_sound(kind: str, data: bytes) -> bool:
    """Whether a file of this kind, as Pillow calls it, costs to open about what its size and its pixels cost."""
    checks = {"PNG": _is_sound_png, "JPEG": _is_sound_jpeg, "GIF": _is_sound_gif, "TIFF": _is_sound_tiff}
    if kind == "AVIF":
        return all(_is_sound_tiff(data[found.start() :]) for found in DIRECTORY.finditer(data))
    return checks[kind](data) if kind in checks else True


def orientation(exif: bytes) -> int:
    """How a picture lies by its EXIF, from 1, upright, to 8; 1 as well for EXIF that cannot be read."""
    exif = exif.removeprefix(EXIF)
    order, tags = _directory(exif)
    for tag in tags:
        if tag.number == ORIENTATION and tag.kind == 3:
            (value,) = unpack(order + "H", tag.values[:2])
            return int(value)
    return UPRIGHT


def _directory(tiff: bytes) -> tuple[str, list[Tag]]:
    """The order of bytes and the tags of the first directory; none where there is no directory."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4], "")
    if not order or len(tiff) < 8:
        return order, []
    (start,) = unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return order, []
    (number,) = unpack_from(order + "H", tiff, start)
    entry = Struct(order + "HHI4s")
    number = min(number, (len(tiff) - start - 2) // entry.size)
    return order, [Tag(*entry.unpack_from(tiff, start + 2 + index * entry.size)) for index in range(number)]


def _is_sound_tiff(data: bytes) -> bool:
    """Its tags' values lie beside each other, so that they take no more than the file does."""
    order, tags = _directory(data)
    are_few = all(tag.number_of_values <= MOST_VALUES or BYTES_OF_VALUE.get(tag.kind) == 1 for tag in tags)
    return bool(order) and are_few and sum(tag.size for tag in tags) <= len(data)


def _is_sound_png(data: bytes) -> bool:
    at = 8
    for _ in range(MOST_CHUNKS):
        if at + 8 > len(data) or data[at + 4 : at + 8] == b"IEND":
            return True
        (length,) = unpack_from(">I", data, at)
        at += 12 + length
    return False


def _is_sound_jpeg(data: bytes) -> bool:
    scans = exifs = 0
    for number, (marker, segment) in enumerate(_segments(data)):
        scans += marker == SCAN
        if segment.startswith((EXIF, b"MPF\0")):
            # several would be read as one
            exifs += segment.startswith(EXIF)
            found = DIRECTORY.search(segment)
            if found and not _is_sound_tiff(segment[found.start() :]):
                return False
        if scans > MOST_SCANS or number > MOST_SEGMENTS or exifs > 1:
            return False
    return True


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes]]:
    """Each marker of the first picture in a file, with what it leads."""
    at = 0
    while found := MARKER.search(jpeg, at):
        marker, at = found[1][0], found.end()
        if marker == END:
            return
        if marker not in ALONE:
            length = int.from_bytes(jpeg[at : at + 2], "big")
            yield marker, jpeg[at + 2 : at + length]
            at += length


def _is_sound_gif(data: bytes) -> bool:
    """What stands before the first frame, comments above all, is copied once for each of its blocks."""
    if len(data) < 13:
        return True
    has_palette, bits = data[10] & 0x80, data[10] & 7
    start = at = 13 + (3 * 2 ** (bits + 1) if has_palette else 0)
    while at - start <= MOST_BYTES_BESIDE:
        if data[at : at + 1] != b"!":
            return True
        at += 2
        while length := data[at : at + 1]:
            at += 1 + length[0]
            if not length[0] or at - start > MOST_BYTES_BESIDE:
                break
    return False
