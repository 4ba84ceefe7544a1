"""Bounds on what Pillow does beside decoding pixels.

Each bound stops an attack that was measured on Pillow 9.5.0 and 12.3.0: a file that costs far more time or memory than
its size and its pixels do. Most bounds limit what Pillow reads, so that no second parser has to agree with Pillow's.
Two structures are looked at here: the scans of a JPEG, which only C code sees otherwise, and the tags of a TIFF.
"""

from __future__ import annotations

import io
import re
from struct import unpack_from

from PIL.ImageFile import ImageFile

READS_TO_OPEN = 10_000
"""The most reads before the size of an image is known; 10 MB of GIF comments took over 20 s without it."""

READS_TO_LOAD = 2_000_000
"""The most reads while the pixels are decoded; empty PNG chunks behind the pixels took 3 s for 10 MB without it."""

TIMES_READ_TO_OPEN = 4
"""How often Pillow may read the whole file before the size is known; 6 MB of TIFF tags that share their bytes took over
7 GB without it."""

BYTES_READ_TO_LOAD = 2**33
"""The most bytes that Pillow may read for the pixels, about 3 s: it reads 64 KB for even a short strip of a TIFF."""

MOST_LAYERS = 5
"""How often the strips of a TIFF may cover all pixels, once for each colour; strips that did so again and again took
19 s for 5 MB."""

MOST_COMPRESSED_CHUNKS = 100
"""Of a PNG; 10 MB of colour profiles, each of 1 KB, took over 20 s: Pillow decompresses 1 MB from each."""

MOST_SCANS = 100
"""Of a progressive JPEG; a thousand scans over 81 megapixels took over 20 s. Encoders write about ten."""

MOST_SEGMENTS = 10_000
"""Of a JPEG, or items of an AVIF; without it the searches here took 13 s and 1.9 GB for 120 MB of EXIF's name."""

MOST_NUMBERS = 2**20
"""In the tags of a TIFF; 10 MB of strip offsets took 6 s and 0.7 GB on Pillow 9.5, and larger files as much per MB."""

KINDS_OF_BYTES = (1, 2, 6, 7)
"""The types of TIFF tags that Pillow keeps as bytes; it makes an object of each number in all others."""

JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])", re.DOTALL)
"""A marker as the JPEG decoder finds it. Two bytes never match: zero, which escapes 255, and a restart's number."""

MARKERS_WITHOUT_LENGTH = (0x01, 0xD8)
END_OF_IMAGE, START_OF_SCAN = 0xD9, 0xDA

JPEG_MULTI_PICTURE = re.compile(rb"(\xff\xe2..)MPF\0", re.DOTALL)
JPEG_EXIF = re.compile(rb"(\xff\xe1..)Exif\0\0", re.DOTALL)
AVIF_EXIF = re.compile(rb"(infe.{8}(?:..)?)Exif", re.DOTALL)
"""The entry that declares an item of an AVIF file to be EXIF."""


class BoundedFile(io.BytesIO):
    """A file in memory that refuses to be read too often.

    Pillow reads some structures one byte at a time and others again and again. `ValueError` ends the decoding then.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left = READS_TO_OPEN
        self._bytes_left = TIMES_READ_TO_OPEN * len(data)

    def allow_loading(self) -> None:
        """Allow the reads that decoding the pixels takes."""
        self._reads_left = READS_TO_LOAD
        self._bytes_left = BYTES_READ_TO_LOAD

    def read(self, size: int | None = -1) -> bytes:
        """Read as any file does.

        Args:
            size: How many bytes to read; all that are left if negative or None.

        Returns:
            The bytes.

        Raises:
            ValueError: There were more reads or more bytes than an honest file needs.
        """
        data = super().read(size)
        self._reads_left -= 1
        self._bytes_left -= len(data)
        if self._reads_left < 0 or self._bytes_left < 0:
            raise ValueError("the file makes its reader read too much")
        return data


def without_costly_metadata(data: bytes) -> bytes:
    """Hide metadata that Pillow decodes while it opens a file, before anybody can look at its size.

    The pixels and the orientation of an honest file stay what they are:

    - a JPEG's index of further images: only the first image is used. An index of 62 KB took 19 s and 1.2 GB.
    - a JPEG's second and further EXIF segments: Pillow 12 joins them, and 6 MB took over 7 GB.
    - an AVIF's EXIF: its orientation stands outside EXIF. 6 MB took over 7 GB.

    Args:
        data: The bytes of an image file of any format.

    Returns:
        The bytes with other names for the metadata, or the same object if there is none.
    """
    if data.startswith(b"\xff\xd8"):
        data = JPEG_MULTI_PICTURE.sub(rb"\1mpf\0", data)
        if first := JPEG_EXIF.search(data):
            further = JPEG_EXIF.sub(rb"\1exif\0\0", data[first.end() :])
            return data[: first.end()] + further
    if data[4:8] == b"ftyp":
        return AVIF_EXIF.sub(rb"\1exif", data)
    return data


def is_sound(data: bytes) -> bool:
    """Whether a file is free of the attacks that neither `BoundedFile` nor the bound on pixels stops.

    Args:
        data: The bytes of an image file of any format.

    Returns:
        False for a PNG with too many compressed chunks, for a JPEG with too many scans or segments, for an AVIF with
        too many items, and for a TIFF with too many numbers in its tags.

    Raises:
        struct.error: The file is a TIFF and ends before its tags do.
    """
    if data.startswith(b"\x89PNG"):
        return sum(map(data.count, (b"iCCP", b"zTXt", b"iTXt"))) <= MOST_COMPRESSED_CHUNKS
    if data.startswith(b"\xff\xd8"):
        return data.count(b"MPF\0") + data.count(b"Exif\0\0") <= MOST_SEGMENTS and _has_few_scans(data)
    if data[4:8] == b"ftyp":
        return data.count(b"infe") <= MOST_SEGMENTS
    if data.startswith((b"II", b"MM")):
        return _has_few_numbers(data)
    return True


def covers_its_pixels_once(image: ImageFile) -> bool:
    """Whether the parts of a file give each pixel one value for each colour.

    Args:
        image: An opened image that is not decoded yet.

    Returns:
        False for a TIFF whose strips or tiles come back to the same pixels.
    """
    covered = 0
    for _, box, *_ in image.tile:
        left, top, right, bottom = box or (0, 0, *image.size)
        covered += (right - left) * (bottom - top)
    return covered <= MOST_LAYERS * image.width * image.height


def _has_few_scans(jpeg: bytes) -> bool:
    """Whether a JPEG has few scans up to the end of its first image; each scan goes over all pixels."""
    at = scans = 0
    for _ in range(MOST_SEGMENTS):
        found = JPEG_MARKER.search(jpeg, at)
        if found is None or found[1][0] == END_OF_IMAGE:
            return True
        marker, at = found[1][0], found.end()
        scans += marker == START_OF_SCAN
        if scans > MOST_SCANS:
            return False
        if marker not in MARKERS_WITHOUT_LENGTH:
            at += int.from_bytes(jpeg[at : at + 2], "big")
    return False


def _has_few_numbers(tiff: bytes) -> bool:
    """Whether the tags of a TIFF's first image hold few numbers; BigTIFF, which has other tags, is refused."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return False
    (start,) = unpack_from(order + "I", tiff, 4)
    (tags,) = unpack_from(order + "H", tiff, start)
    numbers = 0
    for index in range(tags):
        kind, count = unpack_from(order + "2xHI", tiff, start + 2 + 12 * index)
        numbers += 0 if kind in KINDS_OF_BYTES else count
    return numbers <= MOST_NUMBERS
