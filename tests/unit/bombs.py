"""Small files that take hours, or tens of gigabytes, where nobody looks first.

`python -m tests.unit.bombs FOLDER` measures what those in a folder cost.
"""

from __future__ import annotations

import resource
import sys
import time
import zlib
from pathlib import Path
from struct import pack

from PIL import Image

from rival_ext.errors import RivalError
from rival_ext.images.decoding import decoded_image
from tests.bad_input import base64_text, file_of

MOST_SECONDS = 2
MOST_MEGABYTES = 150


def chunk(kind, data):
    return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))


def png(*chunks, size=(1, 1), kind=0, bits=8):
    header = chunk(b"IHDR", pack(">IIBBBBB", *size, bits, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def overlapping(tags, size):
    """A TIFF's or an EXIF's directory of which each tag's values are all that follows."""
    at = 8 + 2 + 12 * tags + 4
    entries = b"".join(pack("<HHII", 1000 + number, 1, size, at) for number in range(tags))
    return b"II*\0" + pack("<IH", 8, tags) + entries + pack("<I", 0) + bytes(size)


def webp(width, height):
    """Lossless, of a header alone."""
    data = b"\x2f" + pack("<I", (width - 1) | (height - 1) << 14) + bytes(8)
    return b"RIFF" + pack("<I", len(data) + 12) + b"WEBPVP8L" + pack("<I", len(data)) + data


def gif(comment):
    plain = file_of(Image.new("L", (2, 2)), "GIF")
    end = plain.rindex(b",")
    start = plain.rindex(b"!", 0, end) if b"!" in plain[13:end] else end
    blocks = b"".join(b"\xff" + comment[at : at + 255].ljust(255) for at in range(0, len(comment), 255))
    return plain[:start] + b"!\xfe" + blocks + b"\0" + plain[start:]


def scans(number):
    plain = file_of(Image.new("L", (9000, 9000)), "JPEG", progressive=True)
    last = plain[plain.rindex(b"\xff\xda") : -2]
    return plain[:-2] + last * number + plain[-2:]


def with_exif(kind, exif):
    """A picture whose EXIF is a directory of overlapping tags."""
    return file_of(Image.new("RGB", (16, 8)), kind, exif=b"Exif\0\0" + exif)


BOMBS = {
    "PNG of 30,000 pixels a side": lambda: png(size=(30_000, 30_000), bits=1),
    "PNG of 2 billion pixels a side": lambda: png(size=(2**31 - 1, 2**31 - 1), kind=2),
    "PNG, whole, of 15,000 pixels a side": lambda: file_of(Image.new("1", (15_000, 15_000)), "PNG"),
    "PNG of a million chunks": lambda: png(chunk(b"abCd", b"") * 10**6),
    "PNG with a text of 200 MB": lambda: png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * 10**8), 9))),
    "PNG with a profile of 200 MB": lambda: png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2 * 10**8), 9))),
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
    "GIF with a comment of 20 MB": lambda: gif(bytes(20 * 2**20)),
    "TIFF of 15,000 pixels a side": lambda: file_of(Image.new("1", (15_000, 15_000)), "TIFF", compression="group4"),
    "TIFF of overlapping tags": lambda: overlapping(5000, 2**20),
    "WebP of 16,383 pixels a side": lambda: webp(16_383, 16_383),
    "BMP of 100,000 pixels a side": lambda: (
        b"BM" + pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, 10**5, 10**5, 1, 24, 0, 0, 0, 0, 0, 0)
    ),
    "JPEG of 65,500 pixels a side": lambda: file_of(Image.new("L", (8, 8)), "JPEG").replace(
        b"\x08\0\x08\0\x08", b"\x08\xff\xdc\xff\xdc"
    ),
    "JPEG of a thousand scans": lambda: scans(1000),
    "JPEG of overlapping tags": lambda: with_exif("JPEG", overlapping(3000, 20_000)),
}
"""By name, what makes it."""


def main(folder):
    """Refuses each file of a folder; fails with a line for what was taken, or cost time or memory."""
    decoded_image("exemplar", base64_text(png()))
    before, failures = peak(), []
    for file in sorted(folder.iterdir()):
        begun = time.process_time()
        try:
            decoded_image("exemplar", base64_text(file.read_bytes()))
            failures.append(f"{file.name}: taken")
        except RivalError:
            seconds, megabytes = time.process_time() - begun, (peak() - before) / 1024
            if seconds > MOST_SECONDS or megabytes > MOST_MEGABYTES:
                failures.append(f"{file.name}: refused after {seconds:.1f} s and {megabytes:.0f} MB")
    return "\n".join(failures)


def peak():
    """The most memory that this process has held so far, in KB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])) or 0)
