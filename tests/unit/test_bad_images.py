"""Images as they come: every format, mode and turn; damaged ones; and those made to cost more than they show."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from struct import pack

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rival_ext import files
from rival_ext.errors import RivalError
from rival_ext.files import read_image_file
from rival_ext.images import decoding
from rival_ext.images.decoding import MEGAPIXEL, MEGAPIXELS, decoded_image
from tests.bad_input import KINDS, WHOLE, base64_text, cases, damaged_files, file_of, said, texts, two_colours
from tests.unit.bombs import DISARMED, MOST_SECONDS, ON_ITS_SIDE, REFUSED, tiff

ORIENTATION = 0x0112
UNREADABLE = "RIVAL: exemplar must be an image, or the base64 text of one, not "


def decoded(data):
    return decoded_image("exemplar", base64_text(data))


def refused(value):
    image, sentence = said(decoded_image, "exemplar", value)
    assert image is None
    return sentence


# damaged


@pytest.mark.slow
@given(damaged_files())
@cases(100)
def test_a_damaged_file_is_an_image_or_a_sentence(data):
    image, sentence = said(decoded, data)
    if image is None:
        assert sentence.startswith((UNREADABLE, "RIVAL: exemplar must be an image of at most "))
        return
    assert image.mode in ("L", "RGB", "RGBA")
    assert 0 < image.width * image.height <= MEGAPIXELS * MEGAPIXEL
    assert not image.info.keys() - {"transparency"}


@pytest.mark.parametrize("file", WHOLE.values(), ids=WHOLE)
def test_a_file_that_is_cut_off_in_its_header_is_refused(file):
    for end in range(12):
        assert refused(base64_text(file[:end])).startswith(UNREADABLE)


@given(texts | st.binary().map(repr))
@cases(100)
def test_a_text_that_is_no_image_is_refused(text):
    assert refused(text).startswith(UNREADABLE)


@given(st.binary(max_size=60), st.sampled_from([file[:8] for file in WHOLE.values()]))
@cases(100)
def test_a_beginning_alone_is_no_image(data, beginning):
    assert refused(base64_text(beginning + data)).startswith("RIVAL: exemplar must be an image")


# what may stand before base64


PNG = base64_text(WHOLE["PNG RGB"])


@pytest.mark.parametrize(
    "head", ["", "data:image/png;base64,", "DATA:image/svg+xml;base64,", "data:application/octet-stream;base64,"]
)
def test_a_data_urls_head_may_stand_before_it(head):
    assert decoded_image("exemplar", head + PNG).size == (9, 6)


@pytest.mark.parametrize(
    "head",
    [
        *("data:,", "data:base64,", "data:image/png,", "data:image/png;base64", "data:image/png;base64,,", "."),
        *(
            "http://127.0.0.1/x,",
            "file:///etc/passwd,",
            "/etc/passwd,",
            "x:image/png;base64,",
            "data:image/png;base64;\n,",
        ),
        *("data:image/png;base64,data:image/png;base64,", "data:../../x;base64,", "blob:data:image/png;base64,"),
    ],
)
def test_nothing_else_may(head):
    assert refused(head + PNG).startswith(UNREADABLE)


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\t"])
def test_base64_may_have_line_breaks(head, end):
    """GNU's `base64` and Python's `encodebytes` write 76 characters a line, and each line has an end."""
    lines = [PNG[start : start + 76] + end for start in range(0, len(PNG), 76)]
    assert len(lines) > 1
    assert decoded_image("exemplar", head + "".join(lines)).tobytes() == decoded_image("exemplar", PNG).tobytes()


def test_line_breaks_count_nothing_of_an_images_size(monkeypatch):
    monkeypatch.setattr(decoding, "MEGABYTES", len(PNG) * 3 / 4 / decoding.MEGABYTE)
    assert decoded_image("exemplar", "\n".join(PNG)) is not None
    assert "must be an image of at most" in refused(PNG + "AAAA")


@pytest.mark.parametrize("kind", ["PPM", "PCX", "TGA", "DDS", "SGI", "IM", "MSP", "XBM"])
def test_other_formats_are_refused(kind):
    image = two_colours("1" if kind in ("MSP", "XBM") else "RGB")
    file = file_of(image, kind)
    assert refused(base64_text(file)).startswith(UNREADABLE)


# colours


def rgb(image):
    return np.asarray(image.convert("RGB")).astype(int)


GREY = two_colours("L")
SIXTEEN = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
BIG_ENDIAN = Image.frombytes("I;16B", GREY.size, (np.asarray(GREY).astype(">u2") * 257).tobytes())
WIDE = Image.fromarray(np.asarray(GREY).astype(np.int32) * 257)
FLOATS = Image.fromarray(np.asarray(GREY).astype(np.float32) / 255)


@pytest.mark.parametrize(
    "file",
    [
        *(file_of(SIXTEEN, "PNG"), file_of(SIXTEEN, "TIFF"), file_of(BIG_ENDIAN, "TIFF")),
        *(file_of(WIDE, "TIFF"), file_of(WIDE, "PNG"), file_of(FLOATS, "TIFF")),
        *(file_of(GREY.convert("F"), "TIFF"), file_of(GREY.convert("I"), "TIFF"), file_of(GREY, "PNG")),
    ],
)
def test_more_than_eight_bits_are_scaled(file):
    image = decoded(file)
    assert image.mode == "L"
    assert np.abs(rgb(image) - rgb(GREY)).max() <= 1


def test_what_is_not_a_number_is_black():
    values = np.full((6, 9), 0.5, dtype=np.float32)
    values[0] = np.nan, np.inf, -np.inf, -5, 0, 1, 0.25, 1e-40, 1
    shades = np.asarray(decoded(file_of(Image.fromarray(values), "TIFF")))
    assert shades[0].tolist() == [0, 0, 0, 0, 0, 255, 64, 0, 255]
    assert set(shades[1:].ravel()) == {128}


LOSSLESS = [
    *(f"{kind} {mode}" for kind in ("PNG", "BMP") for mode in ("RGB", "P")),
    "PNG RGBA",
    "TIFF RGB",
    "TIFF CMYK",
]
LOSSY = ["GIF RGB", "GIF animated", "WEBP RGB", "WEBP animated", "JPEG RGB", "JPEG CMYK", "TIFF jpeg"]


@pytest.mark.parametrize(("name", "tolerance"), [*((name, 0) for name in LOSSLESS), *((name, 20) for name in LOSSY)])
def test_colours_come_out_as_they_went_in(name, tolerance):
    wanted = two_colours("P") if name.endswith(" P") else two_colours()
    assert np.abs(rgb(decoded(WHOLE[name])) - rgb(wanted)).mean() <= tolerance


def see_through(mode):
    image = two_colours("RGBA")
    image.putalpha(Image.new("L", image.size, 255))
    image.paste((0, 0, 0, 0), (5, 3, 9, 6))
    return image.convert(mode)


def palette(**options):
    image = two_colours().quantize(4)
    return file_of(image, options.pop("kind"), transparency=options["transparency"])


@pytest.mark.parametrize(
    "file",
    [
        *(file_of(see_through(mode), "PNG") for mode in ("RGBA", "LA")),
        *(file_of(see_through("RGBA"), "WEBP"), file_of(see_through("RGBA"), "TIFF")),
        *(palette(kind="PNG", transparency=0), palette(kind="GIF", transparency=0)),
        palette(kind="PNG", transparency=b"\x00\xff\x80\xff"),
        file_of(two_colours(), "PNG", transparency=(255, 165, 0)),
        file_of(two_colours("L"), "PNG", transparency=int(np.asarray(GREY)[5, 8])),
    ],
)
def test_what_is_transparent_stays_so(file):
    image = decoded(file)
    assert image.mode == "RGBA"
    low, high = image.getchannel("A").getextrema()
    assert (low, high) == (0, 255)
    assert "transparency" not in image.info


# turns


@pytest.mark.parametrize("kind", sorted({"PNG", "JPEG", "WEBP", "TIFF", "AVIF"} & set(KINDS)))
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns_it_upright_once(kind, turn):
    lying = Image.Exif()
    lying[ORIENTATION] = turn
    file = file_of(two_colours(size=(16, 8)), kind, exif=lying)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
    image = decoded(file)
    assert (image.size, image.tobytes()) == (wanted.size, wanted.convert(image.mode).tobytes())
    assert decoded_image("exemplar", image) is image


@pytest.mark.parametrize("turn", [2, 6])
def test_an_image_that_is_handed_over_is_turned_as_well(turn):
    lying = Image.Exif()
    lying[ORIENTATION] = turn
    opened = Image.open(io.BytesIO(file_of(two_colours(size=(16, 8)), "PNG", exif=lying)))
    once = decoded_image("exemplar", opened)
    assert once.tobytes() == ImageOps.exif_transpose(opened).tobytes()
    assert decoded_image("exemplar", once).tobytes() == once.tobytes()


@given(st.binary(max_size=80), st.sampled_from(["PNG", "WEBP", "JPEG"]))
@cases(120)
def test_exif_that_cannot_be_read_leaves_it_as_it_lies(exif, kind):
    file = file_of(two_colours(size=(16, 8)), kind, exif=b"Exif\0\0II*\0" + exif)
    image, sentence = said(decoded, file)
    assert (image is not None and set(image.size) == {16, 8}) or sentence.startswith(UNREADABLE)


# sizes


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 30_000), (30_000, 1), pytest.param((30_000, 3_000), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_any_size_within_the_bound_is_taken(size, kind):
    assert decoded(file_of(Image.new("1", size), kind)).size == size


@pytest.mark.parametrize("handed_over", [Image.new("1", (30_000, 30_000)), Image.new("L", (20_000, 6_000))])
def test_an_image_that_is_handed_over_has_the_same_bound(handed_over):
    width, height = handed_over.size
    assert (
        refused(handed_over)
        == f"RIVAL: exemplar must be an image of at most 100 megapixels, not {width}x{height} pixels."
    )


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_is_none(size):
    assert refused(Image.new("RGB", size)).startswith(UNREADABLE)


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_a_text_too_long_is_refused_before_it_is_decoded(monkeypatch, head):
    monkeypatch.setattr(decoding, "MEGABYTES", 1)
    monkeypatch.setattr(decoding, "b64decode", None)
    sentence = refused(head + "A" * (2**20 * 4 // 3 + 200_000))
    assert sentence == "RIVAL: exemplar must be an image of at most 1 MB, not 1.1 MB."


def test_a_file_too_long_is_not_read_to_its_end(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "MEGABYTES", 1)
    monkeypatch.setattr(decoding, "MEGABYTES", 1)
    with open(tmp_path / "long.png", "wb") as file:
        file.truncate(2**33)
    with pytest.raises(RivalError, match=r"--mask .*long.png must be an image of at most 1 MB"):
        read_image_file("--mask", tmp_path / "long.png")


@pytest.mark.parametrize("row", [Image.new("1", (65_536, 1)), Image.new("1", (1, 65_536))])
def test_a_side_has_a_bound(row):
    width, height = row.size
    sentence = f"RIVAL: exemplar must be an image of at most 65535 pixels a side, not {width}x{height}."
    assert refused(row) == sentence
    assert refused(base64_text(file_of(row, "PNG"))) == sentence


def test_a_lower_bound_of_the_host_is_a_sentence(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    sentence = refused(base64_text(WHOLE["PNG RGB"]))
    assert sentence == (
        "RIVAL: exemplar must be an image of at most 100 megapixels, or fewer if Pillow's limit is lower; "
        "make it smaller."
    )


def test_a_host_may_have_lifted_pillows_bound(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    sentence = refused(base64_text(REFUSED["PNG of 30,000 pixels a side"]()))
    assert sentence == "RIVAL: exemplar must be an image of at most 100 megapixels, not 30000x30000 pixels."


# bombs


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_a_bomb_is_refused_in_little_time(make):
    text = base64_text(make())
    begun = time.process_time()
    assert refused(text).startswith("RIVAL: exemplar must be an image")
    assert time.process_time() - begun < MOST_SECONDS


@pytest.mark.parametrize("make", DISARMED.values(), ids=DISARMED)
def test_costly_metadata_is_not_looked_at(make):
    text = base64_text(make())
    begun = time.process_time()
    assert decoded_image("exemplar", text).size in [(1, 1), (16, 8), (8, 16)]
    assert time.process_time() - begun < MOST_SECONDS


def test_a_jpeg_of_costly_metadata_is_turned_upright():
    file = DISARMED[ON_ITS_SIDE]()
    assert decoded(file).size == (8, 16)


@pytest.mark.slow
def test_bombs_cost_no_memory(tmp_path):
    """In a process of its own, which has held nothing large before."""
    for name, make in (REFUSED | DISARMED).items():
        (tmp_path / name).write_bytes(make())
    run = subprocess.run(
        [sys.executable, "-m", "tests.unit.bombs", tmp_path], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("name", "file"), WHOLE.items(), ids=WHOLE)
def test_a_whole_file_of_each_kind_is_taken(name, file):
    assert decoded(file).size == (9, 6), name


def test_a_camera_writes_no_bomb():
    """Progressive, with EXIF, a profile in several parts and a comment: what is bounded, as it occurs in practice."""
    exif = Image.Exif()
    exif[ORIENTATION] = 1
    exif[0x010E] = "a description " * 1000
    parts = {"exif": exif, "icc_profile": bytes(200_000), "comment": b"made by a camera" * 100}
    photo = two_colours(size=(900, 600))
    assert decoded(file_of(photo, "JPEG", progressive=True, **parts)).size == photo.size
    assert decoded(file_of(photo, "TIFF", exif=exif, icc_profile=bytes(200_000))).size == photo.size


@pytest.mark.parametrize("rows", [1, 3, 499, 500])
def test_short_strips_are_no_attack(rows):
    shades = np.arange(1000 * 500, dtype=np.uint32).astype(np.uint8).reshape(500, 1000)
    number = -(-500 // rows)
    # what the first pass learns, the second needs: the pixels lie behind the directory and the offsets
    for start in (0, len(tiff((1000, 500), strips(number, rows, 0)))):
        file = tiff((1000, 500), strips(number, rows, start), shades.tobytes())
    assert np.array_equal(np.asarray(decoded(file)), shades)


def strips(number, rows, start):
    """The tags of a TIFF's strips: where each of them begins, their rows and their lengths."""
    if number == 1:
        return [(273, 4, 1, start), (278, 4, 1, rows), (279, 4, 1, 1000 * rows)]
    offsets = [start + 1000 * rows * index for index in range(number)]
    lengths = [1000 * rows] * number
    return [
        (273, 4, number, pack(f"<{number}I", *offsets)),
        (278, 4, 1, rows),
        (279, 4, number, pack(f"<{number}I", *lengths)),
    ]


def test_the_first_image_of_several_is_taken():
    first, second = two_colours(size=(16, 8)), two_colours(size=(16, 8)).rotate(180)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    file = file_of(first, "MPO", save_all=True, append_images=[second], exif=exif)
    assert decoded(file).tobytes() == decoded(file_of(first, "JPEG", exif=exif)).tobytes()
