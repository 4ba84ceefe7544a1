"""The files that the user of the command line names: what a path really is, and a file by the hash of its bytes."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from PIL import Image

from rival_ext.errors import RivalError
from rival_ext.images.decoding import MEGABYTE, MEGABYTES, READ_FORMATS, image_from_bytes, in_eight_bits

AN_IMAGE_FILE = "a file in " + READ_FORMATS


@dataclass(frozen=True)
class NamedFile:
    """A file that the user named, and the SHA-256 of its bytes."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class NamedImage(NamedFile):
    """An image file that the user named, decoded."""

    image: Image.Image


def read_image_file(name: str, path: Path) -> NamedImage:
    """Read an image file within the bounds of `rival_ext.images.decoding`.

    Args:
        name: The option or argument that the path was given as.
        path: The file, or a pipe.

    Returns:
        The file. Its image is upright, in grey, RGB or RGBA.

    Raises:
        RivalError: The path is no file that can be read, or the file is no image or has more bytes or pixels than
            allowed.
    """
    refuse_unreadable(name, path, AN_IMAGE_FILE)
    try:
        with path.open("rb") as file:
            # one byte more than allowed shows that there is more
            data = file.read(MEGABYTES * MEGABYTE + 1)
    except (OSError, ValueError):
        raise _closed(name, path) from None
    image = image_from_bytes(f"{name} {path}", data)
    converted = image and in_eight_bits(image)
    if converted is None:
        raise RivalError(f"{name} {path} is not an image that can be read.")
    return NamedImage(path, sha256(data).hexdigest(), converted)


def refuse_unreadable(name: str, path: Path, wanted: str) -> None:
    """Refuse a path that is no file with something in it.

    Args:
        name: The option or argument that the path was given as.
        path: The path.
        wanted: What to give instead, for the error sentence.

    Raises:
        RivalError: The path does not exist, or is a folder, a device or an empty file. The sentence says which.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise RivalError(f"{name} {path} does not exist.") from None
    except (OSError, ValueError):
        raise _closed(name, path) from None
    is_file, is_pipe = stat.S_ISREG(status.st_mode), stat.S_ISFIFO(status.st_mode)
    kinds = {
        "a folder": stat.S_ISDIR(status.st_mode),
        "empty": is_file and status.st_size == 0,
        # a pipe is read to its end, a device may have none
        "a device": not is_file and not is_pipe,
    }
    for kind, holds in kinds.items():
        if holds:
            raise RivalError(f"{name} {path} is {kind}; give {wanted}.")


def file_sha256(path: Path) -> str:
    """Hash a file of any size.

    Args:
        path: A file that can be read.

    Returns:
        The SHA-256 in hexadecimal digits.
    """
    seen = sha256()
    with path.open("rb") as file:
        while part := file.read(MEGABYTE):
            seen.update(part)
    return seen.hexdigest()


def _closed(name: str, path: Path) -> RivalError:
    return RivalError(f"{name} {path} cannot be opened; give a file that you may read.")
