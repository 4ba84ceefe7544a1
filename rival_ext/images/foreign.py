"""Files that are no image which is read here, recognised by their first bytes, so that a refusal can name them."""

from __future__ import annotations

import re

from PIL import features

MAGIC = {
    "HEIC": rb"....ftyp(hei[cmxs]|hev[cmx])",
    "AVIF": rb"....ftyp(avi[fs]|(mif1|msf1).{4,40}avif)",
    "HEIF": rb"....ftyp(mif1|msf1)",
    "a raw file of a camera": rb"....ftypcrx|II\*\0....CR|FUJIFILMCCD-RAW|IIU\0|II\x52[OS]|MMOR",
    "a video": rb"....ftyp(iso|mp4|M4V|qt  |avc1|3g)|\x1aE\xdf\xa3|RIFF....AVI ",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "SVG": rb"\s*(<\?xml.{0,900})?(<!--.{0,900}-->\s*)?(<!DOCTYPE svg.{0,300})?<svg",
    "a web page": rb"\s*<(!doctype )?html",
    "Photoshop's PSD": rb"8BPS",
    "GIMP's XCF": rb"gimp xcf",
    "PDF": rb"%PDF",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "OpenEXR": rb"v/1\x01",
    "Radiance HDR": rb"#\?RA",
    "an icon": rb"\0\0\x01\0",
    "a ZIP archive": rb"PK\x03\x04",
}
"""The first bytes of each kind, tried in this order."""

KINDS = {kind: re.compile(magic, re.DOTALL | re.IGNORECASE) for kind, magic in MAGIC.items()}
LONGEST_MAGIC = 2048


def foreign_kind(data: bytes) -> str | None:
    """Name the kind of a file that is not read here.

    Args:
        data: The bytes of any file.

    Returns:
        The kind, in words that follow "not". None for a kind that is read, and for an unknown one.
    """
    head = data[:LONGEST_MAGIC]
    kind = next((kind for kind, magic in KINDS.items() if magic.match(head)), None)
    if kind == "AVIF":
        return None if reads_avif() else "AVIF, which needs Pillow 11.3 or later"
    return kind


def reads_avif() -> bool:
    """Tell whether this Pillow reads AVIF."""
    return "avif" in features.modules and features.check_module("avif")
