"""Small image files that take hours, or tens of gigabytes, where nobody bounds what Pillow does.

`python -m tests.unit.bombs FOLDER` measures what the files in a folder cost.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
import zlib
from pathlib import Path
from struct import pack

from PIL import Image, features

from rival_ext.errors import RivalError
from rival_ext.images.decoding import decoded_image
from tests.bad_input import base64_text, file_of

MOST_SECONDS = 4
MOST_MEGABYTES = 150

RATIONAL = 5
"""The type of TIFF's and EXIF's tags whose numbers are the most costly in Python."""


def chunk(kind, data):
    return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))


def png(*chunks, size=(1, 1), kind=0, bits=8, after=b""):
    header = chunk(b"IHDR", pack(">IIBBBBB", *size, bits, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + after + chunk(b"IEND", b"")


def directory(tags, size, kind, start):
    """Tags that all have the same values, the bytes behind them; `start` is where the directory lies in its file."""
    at = start + 2 + 12 * tags + 4
    count = size // 8 if kind == RATIONAL else size
    entries = b"".join(pack("<HHII", 1000 + number, kind, count, at) for number in range(tags))
    return pack("<H", tags) + entries + pack("<I", 0) + bytes(size)


def overlapping(tags, size, kind=1):
    """A whole TIFF or EXIF of such tags."""
    return b"II*\0" + pack("<I", 8) + directory(tags, size, kind, 8)


def lying_directory(orientation):
    """EXIF of two honest tags, the orientation and the place of another directory, which has such tags."""
    start = 8 + 2 + 12 * 2 + 4
    honest = pack("<HHHII", 2, 0x0112, 3, 1, orientation) + pack("<HHIII", 0x8769, 4, 1, start, 0)
    return b"II*\0" + pack("<I", 8) + honest + directory(2700, 30_000, RATIONAL, start)


def tiff(size, tags, pixels=b""):
    """An uncompressed grey TIFF; a tag's value that is bytes lies behind the directory, before the pixels."""
    width, height = size
    plain = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    entries = sorted([*plain, *tags])
    at, written, behind = 8 + 2 + 12 * len(entries) + 4, b"", b""
    for number, kind, count, value in entries:
        written += pack("<HHII", number, kind, count, at + len(behind) if isinstance(value, bytes) else value)
        behind += value if isinstance(value, bytes) else b""
    return b"II*\0" + pack("<IH", 8, len(entries)) + written + pack("<I", 0) + behind + pixels


def with_directory(size):
    """A TIFF that has a directory of EXIF with overlapping rationals."""
    start = 8 + 2 + 12 * 9 + 4
    tags = [(273, 4, 1, 8), (279, 4, 1, 1), (0x8769, 4, 1, directory(1000, size, RATIONAL, start))]
    return tiff((1, 1), tags)


def webp(width, height):
    """Lossless, and of a header alone."""
    data = b"\x2f" + pack("<I", (width - 1) | (height - 1) << 14) + bytes(8)
    return b"RIFF" + pack("<I", len(data) + 12) + b"WEBPVP8L" + pack("<I", len(data)) + data


def gif(blocks):
    """A small GIF with extension blocks before its first frame."""
    plain = file_of(Image.new("L", (2, 2)), "GIF")
    start = 13 + 3 * 2 ** ((plain[10] & 7) + 1)
    return plain[:start] + blocks + plain[start:]


def bmp(size, compression=0, bits=24, pixels=b""):
    header = pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54 + 1024, 40, *size, 1, bits, compression, len(pixels), 0, 0, 256, 0)
    return b"BM" + header + bytes(1024) + pixels


def jpeg(segments, data=None):
    """A small JPEG with segments behind its first two bytes."""
    plain = data or file_of(Image.new("L", (16, 8)), "JPEG")
    return plain[:2] + segments + plain[2:]


def segment(marker, data):
    return bytes([0xFF, marker]) + pack(">H", len(data) + 2) + data


def exifs(exif, most=65_000):
    """EXIF in as many segments as it takes; Pillow 12 joins them."""
    return b"".join(segment(0xE1, b"Exif\0\0" + exif[at : at + most]) for at in range(0, len(exif), most))


def scans(number):
    plain = file_of(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    last = plain[plain.rindex(b"\xff\xda") : -2]
    return plain[:-2] + last * number + plain[-2:]


def with_exif(kind, exif):
    """A small image whose EXIF is a directory of overlapping tags."""
    return file_of(Image.new("RGB", (16, 8)), kind, exif=b"Exif\0\0" + exif)


def avif(exif):
    """An AVIF whose EXIF is longer than Pillow's writer takes, which reads EXIF itself: the item's place is changed."""
    marker = b"II*\0" + bytes(range(40))
    data = bytearray(with_exif("AVIF", marker))
    at, table = data.find(marker), data.find(b"iloc")
    for place in range(table, table + 80):
        start, length = (int.from_bytes(data[place + shift : place + shift + 4], "big") for shift in (0, 4))
        if table < start <= at < start + length < at + 100:
            item = bytes(data[start:at]) + exif
            data[place : place + 8] = pack(">II", len(data) + 8, len(item))
            return bytes(data) + pack(">I", len(item) + 8) + b"mdat" + item
    raise AssertionError("this Pillow writes AVIF in another way")


REFUSED = {
    "PNG of 30,000 pixels a side": lambda: png(size=(30_000, 30_000), bits=1),
    "PNG of 2 billion pixels a side": lambda: png(size=(2**31 - 1, 2**31 - 1), kind=2),
    "PNG of half a million chunks": lambda: png(chunk(b"abCd", b"") * 500_000),
    "PNG with a text of 50 MB": lambda: png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(5 * 10**7), 9))),
    "PNG with a profile of 50 MB": lambda: png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(5 * 10**7), 9))),
    "PNG with 10,000 profiles of 1 MB": lambda: png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20), 9)) * 10_000),
    "GIF of 65,535 pixels a side": lambda: (
        b"GIF89a"
        + pack("<HHBBB", 65535, 65535, 0, 0, 0)
        + b","
        + pack("<HHHHB", 0, 0, 65535, 65535, 0)
        + b"\x02\x02\x4c\x01\0;"
    ),
    "GIF with a frame beyond its screen": lambda: (
        b"GIF89a"
        + pack("<HHBBB", 1, 1, 0, 0, 0)
        + b","
        + pack("<HHHHB", 60_000, 60_000, 5_000, 5_000, 0)
        + b"\x02\x02\x4c\x01\0;"
    ),
    "GIF with a comment of 20 MB": lambda: gif(b"!\xfe" + (b"\xff" + bytes(255)) * 80_000 + b"\0"),
    "GIF with 2 million comments": lambda: gif(b"!\xfe\1a\0" * 2 * 10**6),
    "TIFF of overlapping tags": lambda: overlapping(5000, 2**20),
    "TIFF of overlapping strips": lambda: tiff(
        (1000, 1001), [(273, 4, 20_000, pack("<I", 8) * 20_000), (278, 4, 1, 1000), (279, 4, 1, 10**6)], bytes(10**6)
    ),
    "TIFF of 3 million strips": lambda: tiff((1, 2), [(273, 4, 3 * 10**6, bytes(12 * 10**6)), (278, 4, 1, 1)]),
    "WebP of 16,383 pixels a side": lambda: webp(16_383, 16_383),
    "BMP of 100,000 pixels a side": lambda: bmp((10**5, 10**5)),
    "BMP that skips 25 billion pixels": lambda: bmp((10**8, 1), compression=1, bits=8, pixels=b"\0\2\xff\xff"),
    "JPEG of 65,500 pixels a side": lambda: file_of(Image.new("L", (8, 8)), "JPEG").replace(
        b"\x08\0\x08\0\x08", b"\x08\xff\xdc\xff\xdc"
    ),
    "JPEG of a thousand scans": lambda: scans(1000),
    "JPEG of 2 million segments": lambda: jpeg(segment(0xE5, b"") * 2 * 10**6),
    "JPEG with 10 MB of padding": lambda: jpeg(segment(0xE5, b"") + bytes(10**7)),
    "JPEG followed by a million names of EXIF": lambda: jpeg(b"") + segment(0xE1, b"Exif\0\0") * 10**6,
}
"""By name, what makes a file that is refused."""

ON_ITS_SIDE = "JPEG with a directory of overlapping rationals, on its side"

DISARMED = {
    "PNG of overlapping tags": lambda: png(chunk(b"eXIf", overlapping(5000, 2**20))),
    "WebP of overlapping tags": lambda: with_exif("WEBP", overlapping(5000, 2**20)),
    "TIFF with a directory of overlapping tags": lambda: with_directory(2**19),
    "JPEG of overlapping tags in many segments": lambda: jpeg(exifs(overlapping(5000, 2**20))),
    ON_ITS_SIDE: lambda: jpeg(exifs(lying_directory(6))),
    "JPEG with an index of overlapping rationals": lambda: jpeg(
        segment(0xE2, b"MPF\0" + overlapping(2700, 32_000, RATIONAL))
    ),
}
"""By name, what makes a file whose image is taken and whose costly metadata is not looked at."""

if "avif" in features.modules:
    DISARMED["AVIF of overlapping tags"] = lambda: avif(overlapping(5000, 2**20))


def main(folder):
    """Decodes each file of a folder; returns a line for each that cost time or memory."""
    decoded_image("exemplar", base64_text(png()))
    before, failures = peak(), []
    for file in sorted(folder.iterdir()):
        begun = time.process_time()
        with contextlib.suppress(RivalError):
            decoded_image("exemplar", base64_text(file.read_bytes()))
        seconds, megabytes = time.process_time() - begun, (peak() - before) / 1024
        if seconds > MOST_SECONDS or megabytes > MOST_MEGABYTES:
            failures.append(f"{file.name}: {seconds:.1f} s and {megabytes:.0f} MB")
    return "\n".join(failures)


def peak():
    """The most memory that this process has held so far, in KB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])) or 0)
