"""Files of formats that are not read: the refusal names the format and says what to do."""

from __future__ import annotations

import pytest

from rival_ext.images import foreign
from rival_ext.images.decoding import SUBFILE_TYPE, decoded_image
from tests.bad_input import WHOLE, base64_text, file_of, said, two_colours


def refused(file):
    image, sentence = said(decoded_image, "exemplar", base64_text(file))
    assert image is None
    return sentence


FOREIGN = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "HEIF": b"\0\0\0\x18ftypmif1\0\0\0\0mif1",
    "JPEG XL": b"\xff\x0a\xfa\x1f",
    "JPEG 2000": file_of(two_colours(), "JPEG2000"),
    "SVG": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "a web page": b"\n<!DOCTYPE html><html></html>",
    "Photoshop's PSD": b"8BPS\0\x01",
    "GIMP's XCF": b"gimp xcf v011",
    "PDF": file_of(two_colours(), "PDF"),
    "PostScript": file_of(two_colours(), "EPS"),
    "OpenEXR": b"v/1\x01\x02\0\0\0",
    "Radiance HDR": b"#?RADIANCE\n",
    "an icon": file_of(two_colours(), "ICO"),
    "a ZIP archive": b"PK\x03\x04\x14\0",
    "a video": b"\0\0\0\x1cftypisom\0\0\x02\0",
}
RAW = {
    "Canon": b"II*\0\x10\0\0\0CR\x02\0",
    "Fujifilm": b"FUJIFILMCCD-RAW 0201",
    "Olympus": b"IIRO\x08\0\0\0",
    "Panasonic": b"IIU\0\x18\0\0\0",
    # Nikon, Sony and Adobe's DNG are TIFFs whose first image is a small preview
    "Nikon": file_of(two_colours(), "TIFF", tiffinfo={SUBFILE_TYPE: 1}),
}


@pytest.mark.parametrize(
    ("kind", "file"), [*FOREIGN.items(), *(("a raw file of a camera", file) for file in RAW.values())]
)
def test_a_known_format_that_is_not_read_is_named(kind, file):
    assert refused(file) == (
        f"RIVAL: exemplar must be PNG, JPEG, WebP, AVIF, BMP, GIF or TIFF, not {kind}; convert it to PNG or JPEG."
    )


AVIF = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"


def test_avif_is_named_only_where_this_pillow_does_not_read_it(monkeypatch):
    monkeypatch.setattr(foreign, "reads_avif", lambda: True)
    assert refused(AVIF).startswith("RIVAL: exemplar must be an image, or the base64 text of one, not ")
    monkeypatch.setattr(foreign, "reads_avif", lambda: False)
    assert "not AVIF, which needs Pillow 11.3 or later;" in refused(AVIF)


@pytest.mark.parametrize("file", WHOLE.values(), ids=WHOLE)
def test_no_file_that_is_read_is_taken_for_another_format(file):
    assert foreign.foreign_kind(file) is None
